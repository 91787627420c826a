// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {NodeId} from "../types/NodeId.sol";
import {Admission, Reveal, TaskId, TaskSpec, TaskState, Unit, UnitStatus} from "../types/Task.sol";

/// @title Tasks, work units, escrow
/// @notice The life of a unit. Every non-terminal state has an exit that anybody may take.
///
/// | From      | Move     | Who                                   | When                                   | To        |
/// |-----------|----------|---------------------------------------|----------------------------------------|-----------|
/// | Open      | claim    | operator of an active node (admitted, | input root known, task Posted,         | Claimed   |
/// |           |          | if the task is private)               | now <= task deadline                   |           |
/// | Claimed   | commit   | the unit's operator                   | now <= claim time + computeWindow      | Committed |
/// | Claimed   | expire   | anybody                               | after that                             | Open      |
/// | Committed | reveal   | the unit's operator                   | a later block, now <= commit time +    | Revealed  |
/// |           |          |                                       | revealWindow                           |           |
/// | Committed | expire   | anybody                               | after that                             | Open      |
/// | Revealed  | accept   | anybody, with the requester's         | at once                                | Finalised |
/// |           |          | signature; or the requester           |                                        |           |
/// | Revealed  | finalise | anybody                               | after reveal time + challengeWindow    | Finalised |
///
/// A task: Posted -cancel (requester)-> Cancelled; Posted or Cancelled -close (anybody)-> Closed, once nothing is in
/// flight and no unit can be claimed any more. Closing credits the rest of the escrow to the requester.
///
/// A round's input root is known from the moment the unit that produces it is *revealed*: rounds do not wait for
/// challenge windows. Each result root binds the input root that it was built on.
/// @dev Assumptions: the token is AvenueToken; block.timestamp moves forward and is right to within seconds;
/// a requester keeps its key and, for a private task, stays reachable long enough to admit nodes.
interface ITaskMarket {
    event TaskPosted(TaskId indexed task, address indexed requester, uint96 escrow, TaskSpec spec);
    event TaskCancelled(TaskId indexed task);
    event TaskClosed(TaskId indexed task, uint96 refunded);
    event UnitClaimed(
        TaskId indexed task, uint32 indexed unit, NodeId indexed node, bytes32 inputStateRoot, uint40 deadline
    );
    event UnitCommitted(TaskId indexed task, uint32 indexed unit, NodeId indexed node, bytes32 commitment);
    event UnitRevealed(
        TaskId indexed task,
        uint32 indexed unit,
        NodeId indexed node,
        bytes32 resultRoot,
        bytes32 checkpointsRoot,
        bytes32 finalStateRoot
    );
    event UnitFinalised(
        TaskId indexed task, uint32 indexed unit, NodeId indexed node, address payee, uint96 paid, bool accepted
    );
    event UnitExpired(
        TaskId indexed task, uint32 indexed unit, NodeId indexed node, uint96 collateral, address reporter
    );
    event Paid(address indexed payee, uint96 amount);

    /// @notice Thrown when the contract is deployed without an address that it needs.
    error ZeroAddress(string what);
    /// @notice Thrown when a specification is not one that can be run; `field` names the first bad field.
    error InvalidSpec(string field);
    /// @notice Thrown when the same specification was posted before.
    error TaskExists(TaskId task);
    /// @notice Thrown when the task was never posted, or is no longer in a status that allows the move.
    error TaskNotOpen(TaskId task, uint8 status);
    /// @notice Thrown when somebody else than the requester asks.
    error NotRequester(address caller, address requester);
    /// @notice Thrown when the index is past the end of the plan.
    error NoSuchUnit(uint32 unit, uint256 units);
    /// @notice Thrown when the unit is not in the status that the move starts from.
    error WrongStatus(TaskId task, uint32 unit, UnitStatus have, UnitStatus need);
    /// @notice Thrown when the state that the unit starts from is not known yet.
    error InputNotKnown(TaskId task, uint32 round);
    /// @notice Thrown when the caller's key serves no registered node.
    error NotAnOperator(address caller);
    /// @notice Thrown when the unit belongs to another node.
    error NotTheWorker(NodeId node, NodeId worker);
    /// @notice Thrown when the move came after its deadline.
    error TooLate(uint256 deadline, uint256 nowTime);
    /// @notice Thrown when the move came before anybody may make it.
    error TooEarly(uint256 notBefore, uint256 nowTime);
    /// @notice Thrown when a reveal is in the same block as its commit.
    error RevealTooSoon(uint256 commitBlock);
    /// @notice Thrown when commitment is zero.
    error EmptyCommitment();
    /// @notice Thrown when the opening does not hash to the commitment.
    error CommitmentMismatch(bytes32 have, bytes32 expected);
    /// @notice Thrown when the final state is not the last checkpoint under the checkpoints root.
    error FinalStateNotInCheckpoints();
    /// @notice Thrown when the requester did not sign this admission for this node, or it does not cover the shard.
    error NotAdmitted(NodeId node, uint32 shard);
    /// @notice Thrown when an admission is past its deadline.
    error AdmissionExpired(uint256 deadline, uint256 nowTime);
    /// @notice Thrown when an acceptance was not signed by the requester for this result.
    error WrongAcceptance(address recovered, address requester);
    /// @notice Thrown when units are still in flight or can still be claimed.
    error NotCloseable(TaskId task, uint32 inFlight);
    /// @notice Thrown when the payee has no credit.
    error NothingToPay(address payee);

    /* POSTING */

    /// @notice Posts a task and reserves its whole escrow from the requester's tokens. Caller must be spec.requester.
    function post(TaskSpec calldata spec) external returns (TaskId task);

    /// @notice As `post`, with an ERC-2612 permit that may already have been used by a front-runner.
    function postWithPermit(TaskSpec calldata spec, uint256 deadline, uint8 v, bytes32 r, bytes32 s)
        external
        returns (TaskId task);

    /// @notice No further claim. Units in flight finish and are paid. Requester only.
    function cancel(TaskSpec calldata spec) external;

    /// @notice Credits what is left of the escrow to the requester. Anybody, once the task can make no more progress.
    function close(TaskSpec calldata spec) external;

    /* WORKING */

    /// @notice Takes a unit, locking `spec.collateral` of the node's stake. Caller is the node's operator.
    /// `admission` is ignored for a public task. EIP-712, domain ("AvenueTaskMarket","1"):
    /// `Admission(bytes32 task,uint64 node,uint256 shards,uint64 deadline)`. An admission to any shard admits to
    /// aggregation.
    function claim(TaskSpec calldata spec, uint32 unit, Admission calldata admission) external;

    /// @notice Commits to a result: keccak256(abi.encode(COMMITMENT_TAG, resultRoot, salt)).
    function commit(TaskId task, uint32 unit, bytes32 commitment) external;

    /// @notice Opens the commitment. The result root becomes public and the next round may build on it.
    function reveal(TaskSpec calldata spec, uint32 unit, Reveal calldata opening) external;

    /* SETTLING */

    /// @notice Finalises at once. EIP-712 `Acceptance(bytes32 task,uint32 unit,bytes32 resultRoot)` by the requester;
    /// the signature may be empty if the requester is the caller.
    /// @dev Warning: a call without a signature names no result: it accepts what is revealed when it lands. On a chain that
    /// may reorganise, sign; a signature that is given is checked whoever the caller is.
    function accept(TaskSpec calldata spec, uint32 unit, bytes calldata signature) external;

    /// @notice Finalises after the challenge window.
    function finalise(TaskSpec calldata spec, uint32 unit) external;

    /// @notice Re-opens a unit whose worker let a deadline pass. Its collateral is slashed: COMPENSATION_BPS to the
    /// requester, TIP_BPS to the caller, the rest burned.
    function expire(TaskSpec calldata spec, uint32 unit) external;

    /// @notice Sends a payee's whole credit to it. Anybody may trigger it; the tokens go to the payee only.
    function withdraw(address payee) external returns (uint96 amount);

    /* READING */

    function taskIdOf(TaskSpec calldata spec) external pure returns (TaskId);
    function getTask(TaskId task) external view returns (TaskState memory);
    function getUnit(TaskId task, uint32 unit) external view returns (Unit memory);
    /// @notice Every unit of one round, training units first, the aggregation unit (if any) last. Empty past the last
    /// round.
    function getRound(TaskSpec calldata spec, uint32 round) external view returns (Unit[] memory);
    /// @notice State root that `round` starts from; zero while unknown. `round == rounds` gives the trained model's.
    function inputStateRoot(TaskSpec calldata spec, uint32 round) external view returns (bytes32);
    /// @notice The result root that `node` would have to commit to.
    function resultRootOf(TaskSpec calldata spec, uint32 unit, NodeId node, bytes32 checkpointsRoot)
        external
        view
        returns (bytes32);
    function escrowOf(TaskSpec calldata spec) external pure returns (uint96);
    function credit(address payee) external view returns (uint96);
}
