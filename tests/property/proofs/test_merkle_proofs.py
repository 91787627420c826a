"""A Merkle proof proves one leaf at one place in a tree of one size, and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proofs.merkle import MerkleTree, merkle_root, verify

leaves_lists = st.lists(st.binary(max_size=80), min_size=1, max_size=40)


@given(leaves_lists, st.data())
def test_every_leaf_is_provable(leaves: list[bytes], data: st.DataObject) -> None:
    tree = MerkleTree.of(leaves)
    index = data.draw(st.integers(0, len(leaves) - 1))
    assert verify(tree.root, len(leaves), index, leaves[index], tree.proof(index))


@given(leaves_lists, st.data())
def test_another_leaf_place_count_length_or_sibling_is_rejected(leaves: list[bytes], data: st.DataObject) -> None:
    tree, count = MerkleTree.of(leaves), len(leaves)
    index = data.draw(st.integers(0, count - 1))
    leaf, proof = leaves[index], tree.proof(index)
    assert not verify(tree.root, count, index, leaf + b"\x00", proof)
    assert not verify(tree.root, count, index, leaf, [*proof, bytes(32)])
    assert not verify(tree.root, count + 1, index, leaf, proof)
    assert not verify(tree.root, count, index + count, leaf, proof)
    assert not verify(tree.root, count, -1, leaf, proof)
    other = data.draw(st.integers(0, count - 1))
    if leaves[other] != leaf:
        assert not verify(tree.root, count, other, leaf, tree.proof(other))
    if proof:
        height = data.draw(st.integers(0, len(proof) - 1))
        bit = data.draw(st.integers(0, 255))
        forged = (int.from_bytes(proof[height], "big") ^ 1 << bit).to_bytes(32, "big")
        assert not verify(tree.root, count, index, leaf, [*proof[:height], forged, *proof[height + 1 :]])
        assert not verify(tree.root, count, index, leaf, proof[:-1])
        assert not verify(tree.root, count, index, leaf, [*proof[:-1], proof[-1][:-1]])


@given(leaves_lists, leaves_lists)
def test_different_leaf_lists_have_different_roots(one: list[bytes], other: list[bytes]) -> None:
    assert (merkle_root(one) == merkle_root(other)) == (one == other)


@given(st.lists(st.binary(min_size=64, max_size=64), min_size=1, max_size=8))
def test_an_inner_node_cannot_pass_for_a_leaf(leaves: list[bytes]) -> None:
    tree = MerkleTree.of(leaves)
    for height in range(1, tree.depth + 1):
        children = tree.levels[height - 1][:2].tobytes()
        for count in range(1, len(leaves) + 1):
            assert not verify(tree.root, count, 0, children, tree.proof(0)[height:])
