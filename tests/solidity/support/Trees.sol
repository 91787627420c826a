// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {MerkleLib} from "../../../contracts/libraries/MerkleLib.sol";

/// @notice Merkle proofs, made the way a node makes them: the contracts only ever check them. Written from
/// docs/protocol.md, not from MerkleLib, so that the two can disagree.
library Trees {
    function proofOf(bytes32[] memory leafHashes, uint256 index) internal pure returns (bytes32[] memory proof) {
        bytes32[] memory level = leafHashes;
        uint256 depth = 0;
        while (1 << depth < leafHashes.length) depth++;
        proof = new bytes32[](depth);
        for (uint256 d = 0; d < depth; d++) {
            // Padding at a level above the leaves is the root of a subtree of EMPTY leaves.
            bytes32 pad = keccak256(hex"02");
            for (uint256 i = 0; i < d; i++) {
                pad = keccak256(abi.encodePacked(hex"01", pad, pad));
            }
            uint256 sibling = index ^ 1;
            proof[d] = sibling < level.length ? level[sibling] : pad;
            bytes32[] memory above = new bytes32[]((level.length + 1) / 2);
            for (uint256 i = 0; i < above.length; i++) {
                bytes32 right = 2 * i + 1 < level.length ? level[2 * i + 1] : pad;
                above[i] = keccak256(abi.encodePacked(hex"01", level[2 * i], right));
            }
            level = above;
            index /= 2;
        }
    }

    function leavesOf(bytes32[] memory roots) internal pure returns (bytes32[] memory hashes) {
        hashes = new bytes32[](roots.length);
        for (uint256 i = 0; i < roots.length; i++) {
            hashes[i] = MerkleLib.leaf(roots[i]);
        }
    }
}
