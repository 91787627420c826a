// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {IAvenueToken} from "./interfaces/IAvenueToken.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {ITaskMarket} from "./interfaces/ITaskMarket.sol";
import {MerkleLib} from "./libraries/MerkleLib.sol";
import {Result, ResultLib} from "./libraries/ResultLib.sol";
import {NodeId} from "./types/NodeId.sol";
import {Admission, Reveal, TaskId, TaskSpec, TaskState, TaskStatus, Unit, UnitStatus} from "./types/Task.sol";

/// @title TaskMarket
/// @notice Tasks, work units, escrow. Its promises are in ITaskMarket.
contract TaskMarket is ITaskMarket, EIP712 {
    using SafeERC20 for IAvenueToken;

    /* CONSTANTS */

    /// @dev Part of a silent worker's collateral that pays the requester for the delay.
    uint256 public constant COMPENSATION_BPS = 5_000;
    /// @dev Part that goes to whoever re-opened the unit.
    uint256 public constant TIP_BPS = 500;

    /// @dev Bounds of a plan. 65,535 * 257 units fit uint32; the revealed shards of a round fit one slot.
    uint256 public constant MAX_ROUNDS = type(uint16).max;
    uint256 public constant MAX_SHARDS = 256;
    /// @dev No money waits longer than deadline + three windows.
    uint256 public constant MAX_DEADLINE_S = 365 days;
    uint256 public constant MAX_WINDOW_S = 30 days;

    uint256 private constant BPS = 10_000;
    bytes32 private constant ADMISSION_TYPEHASH =
        keccak256("Admission(bytes32 task,uint64 node,uint256 shards,uint64 deadline)");
    bytes32 private constant ACCEPTANCE_TYPEHASH = keccak256("Acceptance(bytes32 task,uint32 unit,bytes32 resultRoot)");

    /* IMMUTABLES */

    IAvenueToken public immutable TOKEN;
    INodeRegistry public immutable REGISTRY;

    /* STORAGE */

    /// @inheritdoc ITaskMarket
    mapping(address payee => uint96) public credit;

    mapping(TaskId => TaskState) private _tasks;
    mapping(TaskId => mapping(uint256 unit => Unit)) private _units;
    /// @dev Bit s: shard s of the round is revealed. All bits: the aggregation unit is open. Unused if shards == 1.
    mapping(TaskId => mapping(uint256 round => uint256 bits)) private _revealedShards;

    /* CONSTRUCTOR */

    /// @param token What is paid.
    /// @param registry Who the nodes are and what they have at stake.
    constructor(IAvenueToken token, INodeRegistry registry) EIP712("AvenueTaskMarket", "1") {
        require(address(token) != address(0), ZeroAddress("token"));
        require(address(registry) != address(0), ZeroAddress("registry"));
        TOKEN = token;
        REGISTRY = registry;
    }

    /* POSTING */

    /// @inheritdoc ITaskMarket
    function post(TaskSpec calldata spec) public returns (TaskId task) {
        // Check: a plan that can be run, posted by who pays for it, for the first time.
        require(msg.sender == spec.requester, NotRequester(msg.sender, spec.requester));
        _checkSpec(spec);
        uint96 escrow = escrowOf(spec);
        task = spec.taskId();
        require(_tasks[task].status == TaskStatus.None, TaskExists(task));

        // Effect: one slot, whatever the size of the plan.
        _tasks[task] = TaskState({escrow: escrow, inFlight: 0, finalised: 0, status: TaskStatus.Posted});
        emit TaskPosted(task, spec.requester, escrow, spec);

        // Interaction: reserve the whole escrow now; nobody ever works against an empty purse.
        TOKEN.safeTransferFrom({from: msg.sender, to: address(this), value: escrow});
    }

    /// @inheritdoc ITaskMarket
    function postWithPermit(TaskSpec calldata spec, uint256 deadline, uint8 v, bytes32 r, bytes32 s)
        external
        returns (TaskId task)
    {
        // Interaction: a front-runner may have used the permit; then the allowance is there already.
        try TOKEN.permit(msg.sender, address(this), escrowOf(spec), deadline, v, r, s) {} catch {}
        return post(spec);
    }

    /// @inheritdoc ITaskMarket
    function cancel(TaskSpec calldata spec) external {
        // Check: the requester, and not cancelled or closed before.
        require(msg.sender == spec.requester, NotRequester(msg.sender, spec.requester));
        TaskId task = spec.taskId();
        TaskState storage state = _tasks[task];
        require(state.status == TaskStatus.Posted, TaskNotOpen(task, uint8(state.status)));

        // Effect: no further claim.
        state.status = TaskStatus.Cancelled;
        emit TaskCancelled(task);
    }

    /// @inheritdoc ITaskMarket
    function close(TaskSpec calldata spec) external {
        // Check: nothing is in flight and nothing can be claimed any more.
        TaskId task = spec.taskId();
        TaskState storage state = _tasks[task];
        TaskStatus status = state.status;
        require(status == TaskStatus.Posted || status == TaskStatus.Cancelled, TaskNotOpen(task, uint8(status)));
        bool over =
            status == TaskStatus.Cancelled || block.timestamp > spec.deadline || state.finalised == spec.unitCount();
        // INVARIANT: what may still be paid for work in flight is never refunded.
        require(over && state.inFlight == 0, NotCloseable(task, state.inFlight));

        // Effect: the rest goes back.
        uint96 refunded = state.escrow;
        state.escrow = 0;
        state.status = TaskStatus.Closed;
        credit[spec.requester] += refunded;
        emit TaskClosed(task, refunded);
    }

    /* WORKING */

    /// @inheritdoc ITaskMarket
    function claim(TaskSpec calldata spec, uint32 unit, Admission calldata admission) external {
        // Check: the unit is there to be taken.
        TaskId task = spec.taskId();
        TaskState storage state = _tasks[task];
        require(state.status == TaskStatus.Posted, TaskNotOpen(task, uint8(state.status)));
        require(block.timestamp <= spec.deadline, TooLate(spec.deadline, block.timestamp));
        require(unit < spec.unitCount(), NoSuchUnit(unit, spec.unitCount()));
        Unit storage u = _inStatus(task, unit, UnitStatus.Open);
        bytes32 input = _knownInput(spec, task, unit);

        // Check: the caller may take it.
        NodeId node = REGISTRY.nodeOf(msg.sender);
        require(!node.isNone(), NotAnOperator(msg.sender));
        if (spec.isPrivate) _checkAdmission(spec, task, unit, node, admission);

        // Effect: the worker's clock starts.
        uint40 deadline = uint40(block.timestamp) + spec.computeWindow;
        state.inFlight++;
        u.node = node;
        u.status = UnitStatus.Claimed;
        u.deadline = deadline;
        u.revealWindow = spec.revealWindow;
        emit UnitClaimed(task, unit, node, input, deadline);

        // Interaction: the collateral answers for the unit. Reverts for a node that is not active or cannot cover it.
        REGISTRY.lock(node, spec.collateral);
    }

    /// @inheritdoc ITaskMarket
    function commit(TaskId task, uint32 unit, bytes32 commitment) external {
        // Check: the worker, in time.
        Unit storage u = _inStatus(task, unit, UnitStatus.Claimed);
        _checkWorker(u);
        require(block.timestamp <= u.deadline, TooLate(u.deadline, block.timestamp));
        require(commitment != 0, EmptyCommitment());

        // Effect: bound to a result that nobody else can read yet.
        u.status = UnitStatus.Committed;
        u.deadline = uint40(block.timestamp) + u.revealWindow;
        u.commitBlock = uint40(block.number);
        u.result = commitment;
        emit UnitCommitted(task, unit, u.node, commitment);
    }

    /// @inheritdoc ITaskMarket
    function reveal(TaskSpec calldata spec, uint32 unit, Reveal calldata opening) external {
        // Check: the worker, in time, and after a block in which nobody could copy it.
        TaskId task = spec.taskId();
        Unit storage u = _inStatus(task, unit, UnitStatus.Committed);
        _checkWorker(u);
        require(block.timestamp <= u.deadline, TooLate(u.deadline, block.timestamp));
        require(block.number > u.commitBlock, RevealTooSoon(u.commitBlock));

        // Check: the opening is what was committed to, and the state that others will build on is its last checkpoint.
        _checkFinalState(spec, unit, opening);
        bytes32 resultRoot = _resultRoot(spec, task, unit, u.node, opening.checkpointsRoot);
        bytes32 commitment = ResultLib.commitmentTo(resultRoot, opening.salt);
        require(commitment == u.result, CommitmentMismatch(u.result, commitment));

        // Effect: the next unit may build on it; the challenge window starts.
        u.status = UnitStatus.Revealed;
        u.deadline = uint40(block.timestamp) + spec.challengeWindow;
        u.result = resultRoot;
        u.finalStateRoot = opening.finalStateRoot;
        if (spec.shards > 1 && !spec.isAggregation(unit)) {
            _revealedShards[task][spec.roundOf(unit)] |= 1 << spec.shardOf(unit);
        }
        emit UnitRevealed(task, unit, u.node, resultRoot, opening.checkpointsRoot, opening.finalStateRoot);
    }

    /* SETTLING */

    /// @inheritdoc ITaskMarket
    function accept(TaskSpec calldata spec, uint32 unit, bytes calldata signature) external {
        // Check: the requester's word on this very result.
        TaskId task = spec.taskId();
        Unit storage u = _inStatus(task, unit, UnitStatus.Revealed);
        address signer = signature.length == 0
            ? msg.sender
            : _signer(keccak256(abi.encode(ACCEPTANCE_TYPEHASH, task, unit, u.result)), signature);
        require(signer == spec.requester, WrongAcceptance(signer, spec.requester));

        _pay(spec, task, unit, u, true);
    }

    /// @inheritdoc ITaskMarket
    function finalise(TaskSpec calldata spec, uint32 unit) external {
        // Check: the challenge window is over.
        TaskId task = spec.taskId();
        Unit storage u = _inStatus(task, unit, UnitStatus.Revealed);
        require(block.timestamp > u.deadline, TooEarly(uint256(u.deadline) + 1, block.timestamp));

        _pay(spec, task, unit, u, false);
    }

    /// @inheritdoc ITaskMarket
    function expire(TaskSpec calldata spec, uint32 unit) external {
        // Check: the worker owed a move and its time is over.
        TaskId task = spec.taskId();
        Unit storage u = _units[task][unit];
        UnitStatus status = u.status;
        require(
            status == UnitStatus.Claimed || status == UnitStatus.Committed,
            WrongStatus(task, unit, status, UnitStatus.Claimed)
        );
        require(block.timestamp > u.deadline, TooEarly(uint256(u.deadline) + 1, block.timestamp));

        // Effect: open to others, as if never claimed.
        _tasks[task].inFlight--;
        u.status = UnitStatus.Open;
        u.deadline = 0;
        u.commitBlock = 0;
        u.result = 0;
        // Saturates: a counter that overflowed would hold the unit, and the escrow with it, for ever.
        if (u.attempt < type(uint16).max) u.attempt++;
        uint96 collateral = spec.collateral;
        emit UnitExpired(task, unit, u.node, collateral, msg.sender);

        // Interaction: the collateral pays for the delay. Rounding goes to the burn.
        REGISTRY.slash({
            node: u.node,
            lockedAmount: collateral,
            amount: collateral,
            split: INodeRegistry.Split({
                harmed: spec.requester,
                toHarmed: _part(collateral, COMPENSATION_BPS),
                reporter: msg.sender,
                toReporter: _part(collateral, TIP_BPS)
            })
        });
    }

    /// @inheritdoc ITaskMarket
    function withdraw(address payee) external returns (uint96 amount) {
        // Check: there is credit.
        amount = credit[payee];
        require(amount != 0, NothingToPay(payee));

        // Effect: once.
        credit[payee] = 0;
        emit Paid(payee, amount);

        // Interaction: pay.
        TOKEN.safeTransfer({to: payee, value: amount});
    }

    /* READING */

    /// @inheritdoc ITaskMarket
    function taskIdOf(TaskSpec calldata spec) external pure returns (TaskId) {
        return spec.taskId();
    }

    /// @inheritdoc ITaskMarket
    function getTask(TaskId task) external view returns (TaskState memory) {
        return _tasks[task];
    }

    /// @inheritdoc ITaskMarket
    function getUnit(TaskId task, uint32 unit) external view returns (Unit memory) {
        return _units[task][unit];
    }

    /// @inheritdoc ITaskMarket
    function getRound(TaskSpec calldata spec, uint32 round) external view returns (Unit[] memory units) {
        if (round >= spec.rounds) return units;
        TaskId task = spec.taskId();
        uint256 perRound = spec.unitsPerRound();
        units = new Unit[](perRound);
        for (uint256 i = 0; i < perRound; i++) {
            units[i] = _units[task][round * perRound + i];
        }
    }

    /// @inheritdoc ITaskMarket
    function inputStateRoot(TaskSpec calldata spec, uint32 round) external view returns (bytes32) {
        return round > spec.rounds ? bytes32(0) : _inputStateRoot(spec, spec.taskId(), round);
    }

    /// @inheritdoc ITaskMarket
    function resultRootOf(TaskSpec calldata spec, uint32 unit, NodeId node, bytes32 checkpointsRoot)
        external
        view
        returns (bytes32)
    {
        require(unit < spec.unitCount(), NoSuchUnit(unit, spec.unitCount()));
        return _resultRoot(spec, spec.taskId(), unit, node, checkpointsRoot);
    }

    /// @inheritdoc ITaskMarket
    function escrowOf(TaskSpec calldata spec) public pure returns (uint96) {
        uint256 sum = spec.escrowSum();
        require(sum <= type(uint96).max, InvalidSpec("escrow"));
        // forge-lint: disable-next-line(unsafe-typecast) -- bounded by the line above
        return uint96(sum);
    }

    /* INTERNAL */

    function _checkSpec(TaskSpec calldata spec) private view {
        require(spec.rounds != 0 && spec.rounds <= MAX_ROUNDS, InvalidSpec("rounds"));
        require(spec.shards != 0 && spec.shards <= MAX_SHARDS, InvalidSpec("shards"));
        require(spec.programRoot != 0, InvalidSpec("programRoot"));
        require((spec.aggregationRoot == 0) == (spec.shards == 1), InvalidSpec("aggregationRoot"));
        require(spec.initialStateRoot != 0, InvalidSpec("initialStateRoot"));
        require(spec.dataRoot != 0, InvalidSpec("dataRoot"));
        require(spec.manifest != 0, InvalidSpec("manifest"));
        require(spec.unitPrice != 0, InvalidSpec("unitPrice"));
        require(spec.shards > 1 || spec.aggregationPrice == 0, InvalidSpec("aggregationPrice"));
        // INVARIANT: who walks away from a unit loses at least what the unit would have paid.
        require(
            spec.collateral >= spec.unitPrice && spec.collateral >= spec.aggregationPrice, InvalidSpec("collateral")
        );
        require(spec.steps != 0, InvalidSpec("steps"));
        require(
            spec.checkpointInterval != 0 && spec.checkpointInterval <= spec.steps, InvalidSpec("checkpointInterval")
        );
        require(
            spec.deadline > block.timestamp && spec.deadline <= block.timestamp + MAX_DEADLINE_S,
            InvalidSpec("deadline")
        );
        require(spec.computeWindow != 0 && spec.computeWindow <= MAX_WINDOW_S, InvalidSpec("computeWindow"));
        require(spec.revealWindow != 0 && spec.revealWindow <= MAX_WINDOW_S, InvalidSpec("revealWindow"));
        require(spec.challengeWindow != 0 && spec.challengeWindow <= MAX_WINDOW_S, InvalidSpec("challengeWindow"));
    }

    function _inStatus(TaskId task, uint32 unit, UnitStatus need) private view returns (Unit storage u) {
        u = _units[task][unit];
        require(u.status == need, WrongStatus(task, unit, u.status, need));
    }

    /// @dev Asks the registry for the key of today, so that a rotated operator carries on with its units.
    function _checkWorker(Unit storage u) private view {
        NodeId node = REGISTRY.nodeOf(msg.sender);
        require(!node.isNone(), NotAnOperator(msg.sender));
        require(node == u.node, NotTheWorker(node, u.node));
    }

    function _checkAdmission(
        TaskSpec calldata spec,
        TaskId task,
        uint32 unit,
        NodeId node,
        Admission calldata admission
    ) private view {
        uint256 shard = spec.shardOf(unit);
        bool covered = spec.isAggregation(unit) ? admission.shards != 0 : (admission.shards >> shard) & 1 == 1;
        // forge-lint: disable-next-line(unsafe-typecast) -- a shard is at most 256
        require(covered, NotAdmitted(node, uint32(shard)));
        require(block.timestamp <= admission.deadline, AdmissionExpired(admission.deadline, block.timestamp));
        address signer = _signer(
            keccak256(abi.encode(ADMISSION_TYPEHASH, task, node, admission.shards, admission.deadline)),
            admission.signature
        );
        // forge-lint: disable-next-line(unsafe-typecast) -- a shard is at most 256
        require(signer == spec.requester, NotAdmitted(node, uint32(shard)));
    }

    /// @dev Who signed; zero if the signature is malformed.
    function _signer(bytes32 structHash, bytes calldata signature) private view returns (address signer) {
        (signer,,) = ECDSA.tryRecoverCalldata(_hashTypedDataV4(structHash), signature);
    }

    /// @dev Zero while unknown. The state that a round ends with is its last unit's.
    function _inputStateRoot(TaskSpec calldata spec, TaskId task, uint256 round) private view returns (bytes32) {
        return round == 0 ? spec.initialStateRoot : _units[task][round * spec.unitsPerRound() - 1].finalStateRoot;
    }

    /// @dev The state that a unit starts from; reverts while the unit cannot be worked on.
    function _knownInput(TaskSpec calldata spec, TaskId task, uint32 unit) private view returns (bytes32 input) {
        uint256 round = spec.roundOf(unit);
        input = _inputStateRoot(spec, task, round);
        bool known = input != 0;
        if (spec.isAggregation(unit)) {
            known = _revealedShards[task][round] == type(uint256).max >> (MAX_SHARDS - spec.shards);
        }
        // forge-lint: disable-next-line(unsafe-typecast) -- a round is at most MAX_ROUNDS
        require(known, InputNotKnown(task, uint32(round)));
    }

    function _checkFinalState(TaskSpec calldata spec, uint32 unit, Reveal calldata opening) private pure {
        uint256 count = spec.checkpointCount(unit);
        // INVARIANT: a final state root of zero means unknown, for ever.
        require(
            opening.finalStateRoot != 0
                && MerkleLib.verify({
                    root: opening.checkpointsRoot,
                    count: count,
                    index: count - 1,
                    leafHash: MerkleLib.leaf(opening.finalStateRoot),
                    proof: opening.proof
                }),
            FinalStateNotInCheckpoints()
        );
    }

    function _resultRoot(TaskSpec calldata spec, TaskId task, uint32 unit, NodeId node, bytes32 checkpointsRoot)
        private
        view
        returns (bytes32)
    {
        bool aggregation = spec.isAggregation(unit);
        Result memory result = Result({
            task: task,
            unit: unit,
            node: node,
            inputStateRoot: _knownInput(spec, task, unit),
            dataRoot: aggregation ? _aggregationDataRoot(spec, task, unit) : spec.dataRoot,
            programRoot: aggregation ? spec.aggregationRoot : spec.programRoot,
            steps: aggregation ? 1 : spec.steps,
            checkpointsRoot: checkpointsRoot
        });
        return result.root();
    }

    /// @dev The shards of a round are the units just before its aggregation unit.
    function _aggregationDataRoot(TaskSpec calldata spec, TaskId task, uint32 unit) private view returns (bytes32) {
        uint256 shards = spec.shards;
        bytes32[] memory roots = new bytes32[](shards);
        for (uint256 i = 0; i < shards; i++) {
            roots[i] = _units[task][unit - shards + i].finalStateRoot;
        }
        return ResultLib.aggregationDataRoot(roots);
    }

    /// @dev The only place where escrow becomes pay.
    function _pay(TaskSpec calldata spec, TaskId task, uint32 unit, Unit storage u, bool accepted) private {
        // Effect: once, at the price of the plan, to the node's cold key.
        uint96 price = spec.priceOf(unit);
        NodeId node = u.node;
        TaskState storage state = _tasks[task];
        u.status = UnitStatus.Finalised;
        state.inFlight--;
        state.finalised++;
        // INVARIANT: escrow covers every unit that is not finalised.
        state.escrow -= price;
        address payee = REGISTRY.ownerOf(node);
        credit[payee] += price;
        emit UnitFinalised(task, unit, node, payee, price, accepted);

        // Interaction: the collateral is free again.
        REGISTRY.unlock(node, spec.collateral);
    }

    function _part(uint96 amount, uint256 bps) private pure returns (uint96) {
        // forge-lint: disable-next-line(unsafe-typecast) -- bps < BPS, so the part is below the amount
        return uint96(uint256(amount) * bps / BPS);
    }
}
