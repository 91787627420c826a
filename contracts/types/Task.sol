// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {NodeId} from "./NodeId.sol";

/// @notice Names a task: the hash of its whole specification, so nobody has to be told what an id stands for.
type TaskId is bytes32;

using {
    taskId,
    unitsPerRound,
    unitCount,
    escrowSum,
    roundOf,
    shardOf,
    isAggregation,
    priceOf,
    checkpointCount
} for TaskSpec global;

/// @notice Everything a training task is. The chain stores only its hash; each call carries the specification.
/// @dev A plan has `rounds` rounds. Each round has `shards` training units and, if `shards > 1`, one aggregation
/// unit that averages them. Unit index = round * unitsPerRound + shard; the aggregation unit has shard == shards.
struct TaskSpec {
    /// @dev Who pays; signs admissions and acceptances.
    address requester;
    /// @dev Root of the tensor program that a training unit runs.
    bytes32 programRoot;
    /// @dev Root of the tensor program that an aggregation unit runs; zero if and only if shards == 1.
    bytes32 aggregationRoot;
    /// @dev State root that round 0 starts from.
    bytes32 initialStateRoot;
    /// @dev Merkle root over the shards' data roots.
    bytes32 dataRoot;
    /// @dev Blob id of the task manifest (where program, state and data are found off chain).
    bytes32 manifest;
    /// @dev Seed of the batch order; also makes otherwise equal tasks distinct.
    uint64 seed;
    /// @dev Paid for one training unit, token wei.
    uint96 unitPrice;
    /// @dev Paid for one aggregation unit, token wei.
    uint96 aggregationPrice;
    /// @dev Stake locked while a unit is in flight, token wei.
    uint96 collateral;
    uint32 rounds;
    uint16 shards;
    /// @dev Program steps of one training unit. An aggregation unit is one step.
    uint32 steps;
    /// @dev Steps between two checkpoints of a training unit; the last interval may be shorter.
    uint32 checkpointInterval;
    /// @dev No claim after this time, unix s.
    uint40 deadline;
    /// @dev Time from claim to commit, s.
    uint32 computeWindow;
    /// @dev Time from commit to reveal, s.
    uint32 revealWindow;
    /// @dev Time from reveal to finalisation without the requester, s.
    uint32 challengeWindow;
    /// @dev Whether a claim needs an admission signed by the requester.
    bool isPrivate;
}

/// @notice What the chain remembers of a task.
struct TaskState {
    /// @dev Escrow not yet paid or refunded, token wei.
    uint96 escrow;
    /// @dev Units now Claimed, Committed or Revealed.
    uint32 inFlight;
    /// @dev Units finalised.
    uint32 finalised;
    TaskStatus status;
}

/// @notice None -> Posted -> (Cancelled ->) Closed. Closed absorbs.
enum TaskStatus {
    None,
    Posted,
    Cancelled,
    Closed
}

/// @notice Open -> Claimed -> Committed -> Revealed -> Finalised; Claimed and Committed fall back to Open by expiry.
/// Finalised absorbs. The table with movers and deadlines is in ITaskMarket.
enum UnitStatus {
    Open,
    Claimed,
    Committed,
    Revealed,
    Finalised
}

/// @notice What the chain remembers of a work unit. Three slots.
struct Unit {
    /// @dev slot 0: who works on it; zero while never claimed.
    NodeId node;
    UnitStatus status;
    /// @dev How many times it was re-opened.
    uint16 attempt;
    /// @dev When the present status may be ended by anybody, unix s.
    uint40 deadline;
    /// @dev Block of the commit: a reveal must be in a later one.
    uint40 commitBlock;
    /// @dev Copied from the task at claim so that a commit needs no specification, s.
    uint32 revealWindow;
    /// @dev slot 1: salted commitment until the reveal, the result root after it.
    bytes32 result;
    /// @dev slot 2: state root after the unit's last step, known from the reveal on.
    bytes32 finalStateRoot;
}

/// @notice A requester's word that `node` holds the keys to the named shards (bit s = shard s) of a private task.
struct Admission {
    uint256 shards;
    uint64 deadline;
    bytes signature;
}

/// @notice The opening of a commitment.
struct Reveal {
    /// @dev Merkle root over the state roots at every checkpoint, the input state first.
    bytes32 checkpointsRoot;
    bytes32 finalStateRoot;
    /// @dev Merkle path of finalStateRoot as the last leaf under checkpointsRoot.
    bytes32[] proof;
    bytes32 salt;
}

/// @notice The task's name: the hash of everything that it is.
function taskId(TaskSpec calldata spec) pure returns (TaskId) {
    return TaskId.wrap(keccak256(abi.encode(spec)));
}

/// @notice Training units of a round, and the aggregation unit if there is more than one shard.
function unitsPerRound(TaskSpec calldata spec) pure returns (uint256) {
    return spec.shards > 1 ? uint256(spec.shards) + 1 : 1;
}

/// @notice Units of the whole plan.
function unitCount(TaskSpec calldata spec) pure returns (uint256) {
    return spec.rounds * spec.unitsPerRound();
}

/// @notice What the whole plan costs, token wei. Not yet bounded to uint96.
function escrowSum(TaskSpec calldata spec) pure returns (uint256) {
    uint256 perRound = uint256(spec.shards) * spec.unitPrice + (spec.shards > 1 ? spec.aggregationPrice : 0);
    return spec.rounds * perRound;
}

/// @notice The round that a unit belongs to.
function roundOf(TaskSpec calldata spec, uint32 unit) pure returns (uint256) {
    return unit / spec.unitsPerRound();
}

/// @notice The shard that a unit trains on; equals `shards` for an aggregation unit.
function shardOf(TaskSpec calldata spec, uint32 unit) pure returns (uint256) {
    return unit % spec.unitsPerRound();
}

/// @notice Whether the unit averages its round's shards.
function isAggregation(TaskSpec calldata spec, uint32 unit) pure returns (bool) {
    return spec.shards > 1 && spec.shardOf(unit) == spec.shards;
}

/// @notice What the unit pays, token wei.
function priceOf(TaskSpec calldata spec, uint32 unit) pure returns (uint96) {
    return spec.isAggregation(unit) ? spec.aggregationPrice : spec.unitPrice;
}

/// @notice State roots that a result of this unit commits to, the input state included.
function checkpointCount(TaskSpec calldata spec, uint32 unit) pure returns (uint256) {
    if (spec.isAggregation(unit)) return 2;
    return 1 + (uint256(spec.steps) + spec.checkpointInterval - 1) / spec.checkpointInterval;
}
