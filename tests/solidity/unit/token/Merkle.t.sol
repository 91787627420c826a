// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {MerkleLib} from "../../../../contracts/libraries/MerkleLib.sol";
import {Test} from "../../support/Test.sol";
import {Trees} from "../../support/Trees.sol";

contract MerkleTest is Test {
    function testFuzz_a_proof_of_any_leaf_passes_and_of_any_other_fails(uint8 count, uint8 index, bytes32 other)
        external
        pure
    {
        bytes32[] memory leaves = _leaves(bound(count, 1, 40));
        uint256 i = bound(index, 0, leaves.length - 1);
        bytes32 root = MerkleLib.rootOf(leaves);
        bytes32[] memory proof = Trees.proofOf(leaves, i);
        assertTrue(MerkleLib.verify(root, leaves.length, i, leaves[i], proof), "right");

        vm.assume(other != leaves[i]);
        assertTrue(!MerkleLib.verify(root, leaves.length, i, other, proof), "another leaf");
        assertTrue(!MerkleLib.verify(other, leaves.length, i, leaves[i], proof), "another root");
        for (uint256 j = 0; j < 64; j++) {
            if (j != i) assertTrue(!MerkleLib.verify(root, leaves.length, j, leaves[i], proof), "another index");
            if (j != leaves.length) assertTrue(!MerkleLib.verify(root, j, i, leaves[i], proof), "another count");
        }
    }

    function testFuzz_a_proof_of_another_length_fails(uint8 count, uint8 length) external pure {
        bytes32[] memory leaves = _leaves(bound(count, 1, 40));
        bytes32 root = MerkleLib.rootOf(leaves);
        bytes32[] memory proof = Trees.proofOf(leaves, 0);
        vm.assume(length != proof.length);
        bytes32[] memory cut = new bytes32[](length);
        for (uint256 i = 0; i < length && i < proof.length; i++) {
            cut[i] = proof[i];
        }
        assertTrue(!MerkleLib.verify(root, leaves.length, 0, leaves[0], cut), "length");
    }

    function test_an_inner_node_does_not_pass_for_a_leaf() external pure {
        bytes32[] memory leaves = _leaves(4);
        bytes32 root = MerkleLib.rootOf(leaves);
        bytes32 inner = keccak256(abi.encodePacked(hex"01", leaves[0], leaves[1]));
        bytes32[] memory proof = new bytes32[](1);
        proof[0] = keccak256(abi.encodePacked(hex"01", leaves[2], leaves[3]));
        assertTrue(!MerkleLib.verify(root, 2, 0, inner, proof), "a tree of two");
        assertTrue(!MerkleLib.verify(root, 4, 0, inner, proof), "a tree of four");
    }

    function test_padding_does_not_pass_for_a_leaf() external pure {
        bytes32[] memory leaves = _leaves(3);
        bytes32 root = MerkleLib.rootOf(leaves);
        bytes32[] memory padded = _leaves(4);
        padded[3] = MerkleLib.EMPTY;
        bytes32[] memory proof = Trees.proofOf(padded, 3);
        assertTrue(!MerkleLib.verify(root, 3, 3, MerkleLib.EMPTY, proof), "index past the count");
        assertTrue(!MerkleLib.verify(root, 4, 3, MerkleLib.EMPTY, proof), "a larger count");
        assertTrue(MerkleLib.rootOf(padded) != root, "a padded tree has another root");
    }

    function test_a_tree_without_leaves_is_refused() external {
        vm.expectRevert(abi.encodeWithSelector(MerkleLib.NoLeaves.selector));
        this.rootOfNothing();
        assertTrue(!MerkleLib.verify(bytes32(0), 0, 0, bytes32(0), new bytes32[](0)), "and proves nothing");
    }

    function test_proofs_are_as_long_as_the_depth() external pure {
        assertEq(MerkleLib.depthOf(1), 0, "1");
        assertEq(MerkleLib.depthOf(2), 1, "2");
        assertEq(MerkleLib.depthOf(3), 2, "3");
        assertEq(MerkleLib.depthOf(4), 2, "4");
        assertEq(MerkleLib.depthOf(5), 3, "5");
        assertEq(MerkleLib.depthOf(1 << 26), 26, "2^26");
        assertEq(MerkleLib.depthOf((1 << 26) + 1), 27, "2^26 + 1");
    }

    function rootOfNothing() external pure returns (bytes32) {
        return MerkleLib.rootOf(new bytes32[](0));
    }

    function _leaves(uint256 count) private pure returns (bytes32[] memory leaves) {
        leaves = new bytes32[](count);
        for (uint256 i = 0; i < count; i++) {
            leaves[i] = MerkleLib.leaf(abi.encode("leaf", i));
        }
    }
}
