"""Walks over stored elements agree with NumPy's views, and say so when strides cannot."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from proofs.exact.backend.views import View, cuts_of, nest, strides_in

Array = NDArray[np.int64]


def elements(view: View, stored: Array) -> Array:
    """What the walk passes, in its order."""
    place = np.array([view.offset])
    for size, stride in view.dims:
        place = (place[:, None] + np.arange(size)[None] * stride).reshape(-1)
    passed: Array = stored.reshape(-1)[place]
    return passed


@given(st.data())
def test_chains_of_views_are_those_of_numpy(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    stored = np.arange(int(np.prod(shape)))
    view, array = View.whole(3, shape), stored.reshape(shape)
    for _ in range(data.draw(st.integers(1, 4))):
        moved: View | None
        match data.draw(st.sampled_from(["transpose", "slice", "broadcast", "reshape"])):
            case "transpose":
                order = data.draw(st.permutations(range(array.ndim)))
                moved, array = view.transposed(array.shape, order), array.transpose(order)
            case "slice":
                axis = data.draw(st.integers(0, array.ndim - 1))
                start = data.draw(st.integers(0, array.shape[axis] - 1))
                stop = data.draw(st.integers(start + 1, array.shape[axis]))
                moved = view.sliced(array.shape, axis, start, stop)
                array = array.take(range(start, stop), axis=axis)
            case "broadcast":
                to = tuple(side if side > 1 else data.draw(st.integers(1, 3)) for side in array.shape)
                moved, array = view.broadcast(array.shape, to), np.broadcast_to(array, to)
            case _:
                axis = data.draw(st.integers(0, array.ndim - 1))
                merged = (*array.shape[: max(axis - 1, 0)], -1, *array.shape[axis + 1 :])
                array = array.reshape(merged)
                moved = view
        if moved is None:
            return
        view = moved
        assert elements(view, stored).tolist() == array.reshape(-1).tolist()
        strides = view.strided(array.shape)
        if strides is not None:
            shown = np.lib.stride_tricks.as_strided(
                stored[view.offset :], array.shape, tuple(8 * stride for stride in strides)
            )
            assert shown.tolist() == array.tolist()


def test_a_reshape_of_a_transposed_value_is_a_walk_but_has_no_strides() -> None:
    view = View.whole(0, (3, 4)).transposed((3, 4), (1, 0))
    assert view is not None and view.dims == ((4, 1), (3, 4))
    assert view.strided((12,)) is None
    assert view.strided((4, 3)) == (1, 4)
    assert view.transposed((6, 2), (1, 0)) is None, "an axis ends inside a size that it does not divide"


@pytest.mark.parametrize(
    ("cuts", "sizes"), [({1}, ()), ({1, 12}, (12,)), ({1, 3, 12}, (4, 3)), ({1, 2, 3, 12}, None), ({1, 4, 6, 12}, None)]
)
def test_a_nest_stops_at_every_cut_or_there_is_none(cuts: set[int], sizes: tuple[int, ...] | None) -> None:
    assert nest(cuts) == sizes


def test_strides_of_a_walk_in_a_finer_nest() -> None:
    dims = ((6, 10), (4, 1))
    assert cuts_of(dims) == {1, 4, 24}
    assert strides_in(dims, (2, 3, 2, 2)) == (30, 10, 2, 1)
