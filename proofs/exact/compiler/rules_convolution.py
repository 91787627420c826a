"""Rules for convolution (one or two axes; stride, padding, dilation, groups) and its gradients: gathers into products.

    forward          kernels [o, c*k] times windows of the image [c*k, pixels*images]
    of the kernels   gradient [o, pixels*images] times the same windows
    of the image     kernels, turned over, [c, o*k] times windows of the gradient: no sums are scattered
    of the bias      sums of the gradient before any rounding

Sums are exact integers, whatever the order: the one rounding is to the format of the result.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from math import prod

import torch

from proofs.exact.builder import Handle
from proofs.exact.compiler.arithmetic import add, total
from proofs.exact.compiler.hoist import transposed
from proofs.exact.compiler.lowering import Lowering, rule, settled
from proofs.exact.compiler.rules_shape import result_shape
from proofs.exact.compiler.windows import Windows, gathered, image_rows, pair, pixel_rows

aten = torch.ops.aten


@rule(aten.convolution.default)
def convolution(
    lo: Lowering,
    x: Handle,
    weight: Handle,
    bias: Handle | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    is_transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Handle:
    shape = result_shape(lo)
    _refuse(lo, x, is_transposed)
    windows = _windows(x.shape, weight.shape, shape, stride, padding, dilation)
    looked = _image_windows(lo, lo.operand(x), windows, groups)
    kernels = lo.b.reshape(lo.operand(weight), (groups, weight.shape[0] // groups, prod(weight.shape[1:])))
    summed = _rows(lo, _times(lo, kernels, looked), windows.windows)
    if bias is not None:
        summed = add(lo.b, summed, lo.b.reshape(bias, (bias.shape[0], 1, 1)))
    return lo.b.reshape(image_rows(lo, lo.settle(summed), windows.output), shape)


@rule(aten.convolution_backward.default)
def convolution_backward(
    lo: Lowering,
    gradient: Handle,
    x: Handle,
    weight: Handle,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    is_transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Handle | None, Handle | None, Handle | None]:
    _refuse(lo, x, is_transposed)
    windows = _windows(x.shape, weight.shape, gradient.shape, stride, padding, dilation)
    rows = pixel_rows(lo, _planar(lo, lo.operand(gradient)))
    channels, pixels, images = rows.shape
    of_image = of_kernels = of_bias = None
    if output_mask[0]:
        summed = _image_gradient(lo, rows, lo.operand(weight), windows, groups)
        of_image = lo.b.reshape(image_rows(lo, settled_part(lo, summed, 0), windows.image), x.shape)
    if output_mask[1]:
        looked = _image_windows(lo, lo.operand(x), windows, groups)
        spread = lo.b.reshape(rows, (groups, channels // groups, pixels * images))
        of_kernels = lo.b.reshape(_product(lo, spread, looked), weight.shape)
    if output_mask[2]:
        wide = pixel_rows(lo, _planar(lo, gradient))
        of_bias = total(lo.b, lo.b.reshape(wide, (channels, pixels * images)), [1], keepdim=False)
    return of_image, of_kernels, of_bias


def _image_windows(lo: Lowering, x: Handle, windows: Windows, groups: int) -> Handle:
    """[groups, channels of one * places, windows * images]."""
    rows = pixel_rows(lo, _planar(lo, x))
    channels, _, images = rows.shape
    looked = gathered(lo, rows, windows.looked_at(), nowhere=0)
    return lo.b.reshape(looked, (groups, channels // groups * windows.places, windows.windows * images))


def _image_gradient(lo: Lowering, rows: Handle, weight: Handle, windows: Windows, groups: int) -> Handle:
    """[channels of the image, pixels, images] from the rows of the gradient."""
    outputs, _, images = rows.shape
    each, inputs = outputs // groups, weight.shape[1]
    looked = gathered(lo, rows, windows.looked_from(), nowhere=0)
    looked = lo.b.reshape(looked, (groups, each * windows.places, windows.pixels * images))
    # [o, c, places] -> [c, o * places] of each group.
    turned = transposed(lo, lo.b.reshape(weight, (groups, each, inputs, windows.places)), (0, 2, 1, 3))
    kernels = lo.b.reshape(turned, (groups, inputs, each * windows.places))
    return _rows(lo, _times(lo, kernels, looked), windows.pixels)


def _times(lo: Lowering, a: Handle, columns: Handle) -> Handle:
    """[groups, m, k], [groups, k, n] -> [groups, m, n]."""
    if a.shape[0] > 1:
        return lo.b.matmul_nt(a, lo.b.transpose(columns))
    flat = lo.b.transpose(lo.b.reshape(columns, columns.shape[1:]))
    return _grouped(lo, lo.b.matmul_nt(lo.b.reshape(a, a.shape[1:]), flat))


def _product(lo: Lowering, a: Handle, b: Handle) -> Handle:
    """[groups, m, k], [groups, n, k] -> [groups, m, n]."""
    if a.shape[0] > 1:
        return lo.b.matmul_nt(a, b)
    return _grouped(lo, lo.b.matmul_nt(lo.b.reshape(a, a.shape[1:]), lo.b.reshape(b, b.shape[1:])))


def _grouped(lo: Lowering, x: Handle) -> Handle:
    """A single group's product is an ordinary one, which runs faster than a batch of one."""
    return lo.b.reshape(x, (1, *x.shape))


def _rows(lo: Lowering, product: Handle, pixels: int) -> Handle:
    """[groups, outputs of one, pixels * images] -> [outputs, pixels, images]."""
    groups, each, columns = product.shape
    return lo.b.reshape(product, (groups * each, pixels, columns // pixels))


def settled_part(lo: Lowering, x: Handle, place: int) -> Handle:
    """In the format of what reads this place of the node's tuple, before the transposition rather than after."""
    for user in lo.node.users:
        if user.target is operator.getitem and user.args[1] == place:
            return settled(lo.b, x, lo.format_of(user))
    return x


def _planar(lo: Lowering, x: Handle) -> Handle:
    """A sequence [images, channels, length] is a picture of height 1."""
    return x if len(x.shape) == 4 else lo.b.reshape(x, (*x.shape[:2], 1, x.shape[2]))


def _windows(
    image: tuple[int, ...],
    weight: tuple[int, ...],
    output: tuple[int, ...],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Windows:
    if len(image) == 3:
        image, weight, output = ((*shape[:2], 1, shape[2]) for shape in (image, weight, output))
        stride, dilation, padding = (1, stride[0]), (1, dilation[0]), (0, padding[0])
    return Windows(
        image=(image[2], image[3]),
        output=(output[2], output[3]),
        kernel=(weight[2], weight[3]),
        stride=pair(stride, (1, 1)),
        padding=pair(padding, (0, 0)),
        dilation=pair(dilation, (1, 1)),
    )


def _refuse(lo: Lowering, x: Handle, is_transposed: bool) -> None:
    if is_transposed:
        raise lo.unsupported("transposed convolution", "use nn.Upsample or repeat, then an ordinary convolution")
    if len(x.shape) not in (3, 4):
        raise lo.unsupported(
            f"convolution of a tensor of shape {list(x.shape)}", "give it [images, channels, (height,) width]"
        )
