"""Views, parts, joins and their gradients move every number to where PyTorch puts it, and change none."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from proofs.exact.compiler.lowering import Unsupported
from proofs.exact.opcodes import Opcode
from tests.support.rule_trial import Function, exactly, gradients, lowered, opcodes, weights_for, whole

X = whole(2, 3, 4)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.view(6, 4),
        lambda x: x.reshape(-1),
        lambda x: x.transpose(0, 2).reshape(8, 3),
        lambda x: x.permute(2, 0, -2),
        lambda x: x.transpose(-1, 0),
        lambda x: x[0].t(),
        lambda x: x.mT,
        lambda x: x.unsqueeze(1).expand(2, 5, 3, 4),
        lambda x: x[:1].squeeze(0),
        lambda x: x[:, None, None].squeeze(),
        lambda x: x.flatten(1).unflatten(1, (4, 3)),
        lambda x: x.clone().contiguous().detach(),
        lambda x: x[:, 1:],
        lambda x: x[..., -3:-1],
        lambda x: x[:, :, ::2],
        lambda x: x[:, ::2, 1::2],
        lambda x: x[1, -1],
        lambda x: x.narrow(2, 1, 2),
        lambda x: x.split(3, dim=2),
        lambda x: x.split([1, 2], dim=1),
        lambda x: x.chunk(2, dim=-1),
        lambda x: x.unbind(1),
        lambda x: torch.cat([x, x[:, :1], x[:, 1:]], dim=1),
        lambda x: torch.stack([x, x.flip(0)], dim=-2),
        lambda x: F.pad(x, (1, 2)),
        lambda x: F.pad(x, (0, 1, 2, 0), value=3.0),
        lambda x: F.pad(x, (-1, 2, 1, -2)),
        lambda x: x.repeat(3, 1, 2, 2),
        lambda x: x.flip(0, 2),
        lambda x: x.roll((1, -1), (0, 2)),
        lambda x: x.roll(5),
        lambda x: x.tril(),
        lambda x: x.triu(1),
        lambda x: (torch.zeros_like(x), torch.ones_like(x), torch.full_like(x, -2.5)),
        lambda x: (x.new_zeros(2, 2), x.new_ones(3), x.new_full((2,), 7.0)),
    ],
)
def test_moved_numbers_are_those_of_pytorch(function: Function) -> None:
    exactly(function, X)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:, 1:],
        lambda x: x[:, :, ::3],
        lambda x: x[1],
        lambda x: x[:, :, -1],
        lambda x: x.unbind(1)[2],
        lambda x: x.chunk(2, dim=-1)[1],
        lambda x: F.pad(x, (1, 2, 0, 1)),
        lambda x: torch.stack([x, x], dim=1).transpose(0, 1)[0],
        lambda x: x.roll(1, 0),
        lambda x: x.flip(1),
    ],
)
def test_gradients_go_back_to_where_the_numbers_came_from(function: Function) -> None:
    exactly(gradients(function, weights_for(function, X)), X)


def test_views_cost_no_arithmetic() -> None:
    program = exactly(lambda x: x.transpose(1, 2).unsqueeze(0).expand(5, -1, -1, -1)[:, :, 1:3].permute(3, 1, 2, 0), X)
    moved = {Opcode.TRANSPOSE, Opcode.RESHAPE, Opcode.BROADCAST, Opcode.SLICE}
    # What else there is counts the steps and knows the input's range.
    assert sorted(opcode for opcode in opcodes(program) if opcode not in moved) == [
        Opcode.ADD,
        Opcode.CLAMP,
        Opcode.CLAMP,
    ]


def test_two_transpositions_are_one_and_inverse_ones_none() -> None:
    program = exactly(lambda x: (x.transpose(0, 1).transpose(1, 2), x.permute(2, 0, 1).permute(1, 2, 0)), X)
    assert opcodes(program).count(Opcode.TRANSPOSE) == 1


def test_a_slice_without_elements_is_refused() -> None:
    with pytest.raises(Unsupported, match="without elements"):
        lowered(lambda x: torch.cat([x[:, 3:], x], dim=1), X)


def test_padding_with_infinity_is_refused() -> None:
    with pytest.raises(Unsupported, match="filled with -inf"):
        lowered(lambda x: F.pad(x, (1, 1), value=-torch.inf), X)


INDEX = torch.tensor([2, 0, 0, 1])


@pytest.mark.parametrize(
    "function",
    [
        lambda x, i: x.index_select(1, i),
        lambda x, i: x[:, i],
        lambda x, i: x[:, i.view(2, 2)],
        lambda x, i: x[:, :, torch.tensor([3, 1])],
        lambda x, i: x.view(6, 4)[torch.arange(4), i],
        lambda x, i: x[:, i, torch.arange(4)],
        lambda x, i: x.gather(2, i.view(2, 1, 2)[:, :, :1].expand(2, 3, 1)),
        lambda x, i: x.gather(2, i.view(2, 1, 2).expand(2, 3, 2)),
        lambda x, i: x.gather(1, i.view(2, 2, 1).expand(2, 2, 4)),
        lambda x, i: x.scatter(2, i.view(2, 1, 2)[:, :, :1].expand(2, 3, 1), 5.0),
        lambda x, i: x.scatter(1, i.view(2, 2, 1).expand(2, 2, 4), 5.0),
        lambda x, i: x.scatter(1, i.view(2, 2, 1)[:, :1].expand(2, 1, 4), x[:, :1]),
        lambda x, i: x.scatter_add(1, i.view(2, 2, 1).expand(2, 2, 4), x[:, :2]),
        lambda x, i: x.index_add(1, i, torch.cat([x, x[:, :1]], dim=1)),
        lambda x, i: x.index_put((torch.tensor([0, 1, 1, 1]), i), x.view(6, 4)[:4], accumulate=True),
        lambda x, i: F.one_hot(i, 3),
    ],
)
def test_choice_and_sums_by_index_are_those_of_pytorch(function: Function) -> None:
    exactly(function, X, INDEX)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, i: x[:, i],
        lambda x, i: x[:, i, torch.arange(4)],
        lambda x, i: x.gather(2, i.view(2, 1, 2).expand(2, 3, 2)),
    ],
)
def test_gradients_of_a_choice_are_summed_where_indices_agree(function: Function) -> None:
    weights = weights_for(function, X, INDEX)
    exactly(lambda x, i: gradients(lambda y: function(y, i), weights)(x), X, INDEX)


def test_a_choice_by_a_mask_is_refused_with_a_way_out() -> None:
    with pytest.raises(Unsupported, match="order that is not defined") as caught:
        lowered(lambda x, i: x.index_put((i,), x[0], accumulate=False), whole(3, 4), torch.tensor([0, 2]))
    assert "index_add" in caught.value.instead
