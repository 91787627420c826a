// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @notice Names a compute node for its whole life, through every rotation of its operator key. Zero is no node.
type NodeId is uint64;

using {isNone, equals as ==} for NodeId global;

/// @notice Whether the id names no node.
function isNone(NodeId id) pure returns (bool) {
    return NodeId.unwrap(id) == 0;
}

function equals(NodeId a, NodeId b) pure returns (bool) {
    return NodeId.unwrap(a) == NodeId.unwrap(b);
}
