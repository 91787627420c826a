// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {TaskId} from "../types/Task.sol";
import {NodeId} from "../types/NodeId.sol";

/// @notice Everything that one run of one unit is. Its hash is the result root: a copied result root names another
/// node, so it opens nobody else's commitment.
struct Result {
    TaskId task;
    uint32 unit;
    NodeId node;
    bytes32 inputStateRoot;
    bytes32 dataRoot;
    bytes32 programRoot;
    uint32 steps;
    bytes32 checkpointsRoot;
}

using ResultLib for Result global;

/// @title What is hashed into a result, as in docs/protocol.md section 1
/// @notice Golden vectors shared with proofs/results.py: tests/vectors/results.json.
library ResultLib {
    bytes32 internal constant RESULT_TAG = keccak256("avenue.result.v1");
    bytes32 internal constant COMMITMENT_TAG = keccak256("avenue.commitment.v1");
    bytes32 internal constant AGGREGATION_TAG = keccak256("avenue.aggregation.v1");
    bytes32 internal constant SEED_TAG = keccak256("avenue.seed.v1");

    /// @notice The result root.
    function root(Result memory result) internal pure returns (bytes32) {
        // A static struct encodes as its fields in order.
        return keccak256(abi.encode(RESULT_TAG, result));
    }

    /// @notice What is sent on chain before anybody may see the result root.
    function commitmentTo(bytes32 resultRoot, bytes32 salt) internal pure returns (bytes32) {
        return keccak256(abi.encode(COMMITMENT_TAG, resultRoot, salt));
    }

    /// @notice The data root of an aggregation unit: the states that it averages, in the order of their shards.
    function aggregationDataRoot(bytes32[] memory shardFinalStateRoots) internal pure returns (bytes32) {
        return keccak256(abi.encode(AGGREGATION_TAG, shardFinalStateRoots));
    }

    /// @notice Seed of the batch order of a shard's units: 63 bits, so that it fits a signed 64-bit tensor element.
    function unitSeed(uint64 seed, uint32 shard) internal pure returns (uint64) {
        // The cast keeps the low 64 bits, as docs/protocol.md says.
        // forge-lint: disable-next-line(unsafe-typecast)
        return uint64(uint256(keccak256(abi.encode(SEED_TAG, seed, shard)))) >> 1;
    }
}
