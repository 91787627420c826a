// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Merkle trees as in docs/protocol.md section 1
/// @notice Leaf, inner node, padding and root are hashed in four separate domains, and the root binds the number of
/// leaves. So no inner node passes for a leaf, no tree has a second reading with another depth, and padding proves
/// nothing.
/// Golden vectors shared with proofs/merkle.py: tests/vectors/merkle.json.
library MerkleLib {
    bytes1 internal constant LEAF = 0x00;
    bytes1 internal constant NODE = 0x01;
    bytes1 internal constant ROOT = 0x03;
    /// @dev Fills the leaf level up to the next power of two.
    bytes32 internal constant EMPTY = keccak256(hex"02");

    /// @notice Thrown when a tree without leaves is asked for.
    error NoLeaves();

    /// @notice Hash of one leaf of any length.
    function leaf(bytes memory data) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(LEAF, data));
    }

    /// @notice Hash of a leaf that is itself a root.
    function leaf(bytes32 root) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(LEAF, root));
    }

    /// @notice Root over leaf hashes.
    function rootOf(bytes32[] memory leafHashes) internal pure returns (bytes32) {
        uint256 count = leafHashes.length;
        require(count > 0, NoLeaves());

        uint256 width = 1 << depthOf(count);
        bytes32[] memory level = new bytes32[](width);
        for (uint256 i = 0; i < width; i++) {
            level[i] = i < count ? leafHashes[i] : EMPTY;
        }
        for (; width > 1; width /= 2) {
            for (uint256 i = 0; i < width / 2; i++) {
                level[i] = _node(level[2 * i], level[2 * i + 1]);
            }
        }
        return _bindCount(count, level[0]);
    }

    /// @notice Whether `leafHash` is leaf `index` of the tree of `count` leaves with this root.
    /// @param proof Siblings from the bottom up, exactly ceil(log2 count) of them.
    function verify(bytes32 root, uint256 count, uint256 index, bytes32 leafHash, bytes32[] memory proof)
        internal
        pure
        returns (bool)
    {
        if (index >= count || count > type(uint64).max || proof.length != depthOf(count)) return false;

        bytes32 hash = leafHash;
        for (uint256 i = 0; i < proof.length; i++) {
            hash = (index >> i) & 1 == 0 ? _node(hash, proof[i]) : _node(proof[i], hash);
        }
        return _bindCount(count, hash) == root;
    }

    /// @notice ceil(log2 count), the length of every proof. `count` is at least 1.
    function depthOf(uint256 count) internal pure returns (uint256 depth) {
        for (uint256 width = count - 1; width > 0; width >>= 1) {
            depth++;
        }
    }

    function _node(bytes32 left, bytes32 right) private pure returns (bytes32) {
        return keccak256(abi.encodePacked(NODE, left, right));
    }

    function _bindCount(uint256 count, bytes32 top) private pure returns (bytes32) {
        // forge-lint: disable-next-line(unsafe-typecast) -- callers bound the count
        return keccak256(abi.encodePacked(ROOT, uint64(count), top));
    }
}
