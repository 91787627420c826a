"""Rules for pooling, and for its reverse: windows of one image gathered, and their places compared or summed.

A maximum is found by a tournament of the places in reading order, in which only a greater value beats an earlier one:
PyTorch's first maximum. Its gradient runs down the same tournament, so that ties are broken alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch

from proofs.exact.builder import Handle
from proofs.exact.compiler.arithmetic import scale, total
from proofs.exact.compiler.lowering import Lowering, rule
from proofs.exact.compiler.rules_convolution import settled_part
from proofs.exact.compiler.rules_shape import result_shape
from proofs.exact.compiler.windows import Windows, gathered, image_rows, pair, pixel_rows

aten = torch.ops.aten

FEW = 16
"""Up to so many places of a window are added one by one, in one pass over memory; more are summed as an axis."""
DIVISOR_FRAC = 24
"""Of reciprocals that differ from window to window: relative error below 2^-18 for windows of up to 64 places."""


@rule(aten.max_pool2d_with_indices.default)
def max_pool(
    lo: Lowering,
    x: Handle,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> tuple[Handle, Handle]:
    shape = tuple(int(side) for side in lo.node.meta["val"][0].shape)
    windows = _windows(x.shape, shape, kernel_size, stride, padding, dilation)
    places, wins = _tournament(lo, x, windows)
    pixels = _pixel_numbers(lo, windows, places[0])
    best, where = places[0], pixels[0]
    for place, pixel, win in zip(places[1:], pixels[1:], wins, strict=True):
        best, where = lo.b.select(win, place, best), lo.b.select(win, pixel, where)
    if best.lo < x.lo:
        best = lo.b.clamp(best, x.lo, x.hi)
    values = image_rows(lo, settled_part(lo, best, 0), windows.output)
    return lo.b.reshape(values, shape), lo.b.reshape(image_rows(lo, where, windows.output), shape)


@rule(aten.max_pool2d_with_indices_backward.default)
def max_pool_backward(
    lo: Lowering,
    gradient: Handle,
    x: Handle,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Handle,
) -> Handle:
    windows = _windows(x.shape, gradient.shape, kernel_size, stride, padding, dilation)
    places, wins = _tournament(lo, x, windows)
    winner = lo.b.broadcast(lo.b.constant(0), places[0].shape)
    for place, win in enumerate(wins, start=1):
        winner = lo.b.select(win, lo.b.constant(place), winner)
    rows = pixel_rows(lo, _batched(lo, gradient))
    spread = _spread(lo, rows, windows, winner)
    return lo.b.reshape(image_rows(lo, lo.settle(spread), windows.image), x.shape)


@rule(aten.avg_pool2d.default)
def avg_pool(
    lo: Lowering,
    x: Handle,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Handle:
    shape = result_shape(lo)
    windows = _windows(x.shape, shape, kernel_size, stride, padding, (1, 1))
    rows = pixel_rows(lo, _batched(lo, x))
    looked = gathered(lo, rows, windows.looked_at(), nowhere=0)
    summed = _sum_of_parts(lo, looked, windows.places)
    means = _divided(lo, summed, _divisors(windows, count_include_pad, divisor_override))
    return lo.b.reshape(image_rows(lo, lo.settle(means), windows.output), shape)


@rule(aten.avg_pool2d_backward.default)
def avg_pool_backward(
    lo: Lowering,
    gradient: Handle,
    x: Handle,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Handle:
    windows = _windows(x.shape, gradient.shape, kernel_size, stride, padding, (1, 1))
    shares = pixel_rows(lo, _batched(lo, gradient))
    shares = _divided(lo, shares, _divisors(windows, count_include_pad, divisor_override))
    spread = _spread(lo, lo.settle(shares), windows)
    return lo.b.reshape(image_rows(lo, lo.settle(spread), windows.image), x.shape)


@rule(aten._adaptive_avg_pool2d.default)
def adaptive_avg_pool(lo: Lowering, x: Handle, output_size: Sequence[int]) -> Handle:
    return avg_pool(lo, x, _even_kernel(lo, x.shape, output_size))


@rule(aten._adaptive_avg_pool2d_backward.default)
def adaptive_avg_pool_backward(lo: Lowering, gradient: Handle, x: Handle) -> Handle:
    kernel = _even_kernel(lo, x.shape, gradient.shape[-2:])
    return avg_pool_backward(lo, gradient, x, kernel, kernel, (0, 0), False, True, None)


@rule(aten.adaptive_max_pool2d.default)
def adaptive_max_pool(lo: Lowering, x: Handle, output_size: Sequence[int]) -> tuple[Handle, Handle]:
    return max_pool(lo, x, _even_kernel(lo, x.shape, output_size))


@rule(aten.adaptive_max_pool2d_backward.default)
def adaptive_max_pool_backward(lo: Lowering, gradient: Handle, x: Handle, indices: Handle) -> Handle:
    kernel = _even_kernel(lo, x.shape, gradient.shape[-2:])
    return max_pool_backward(lo, gradient, x, kernel, kernel, (0, 0), (1, 1), False, indices)


@rule(aten.upsample_nearest2d.default, exact=True)
def upsample(lo: Lowering, x: Handle, output_size: Sequence[int], *scales: float | None) -> Handle:
    images, channels, height, width = x.shape
    down, across = _even_factors(lo, x.shape[2:], output_size, scales)
    spread = lo.b.reshape(x, (images, channels, height, 1, width, 1))
    return lo.b.reshape(lo.b.broadcast(spread, (images, channels, height, down, width, across)), result_shape(lo))


@rule(aten.upsample_nearest2d_backward.default)
def upsample_backward(
    lo: Lowering, gradient: Handle, output_size: Sequence[int], input_size: Sequence[int], *scales: float | None
) -> Handle:
    images, channels, height, width = input_size
    down, across = _even_factors(lo, input_size[2:], output_size, scales)
    blocks = lo.b.reshape(gradient, (images, channels, height, down, width, across))
    return total(lo.b, blocks, [3, 5], keepdim=False)


def _even_factors(
    lo: Lowering, image: Sequence[int], output: Sequence[int], scales: Sequence[float | None]
) -> tuple[int, int]:
    # Scaled by 3.2, 4 pixels become 12, of which the first is repeated four times, not three.
    fraction = any(scale is not None and scale % 1 for scale in scales)
    if fraction or any(larger % side for side, larger in zip(image, output, strict=True)):
        raise lo.unsupported(f"upsampling {list(image)} to {list(output)}", "scale by a whole number")
    return output[0] // image[0], output[1] // image[1]


def _even_kernel(lo: Lowering, image: tuple[int, ...], output: Sequence[int]) -> list[int]:
    if any(side % parts for side, parts in zip(image[-2:], output, strict=True)):
        raise lo.unsupported(
            f"adaptive pooling of {list(image[-2:])} to {list(output)}, whose windows differ in size",
            "choose an output size that divides the image, or nn.AvgPool2d",
        )
    return [side // parts for side, parts in zip(image[-2:], output, strict=True)]


def _tournament(lo: Lowering, x: Handle, windows: Windows) -> tuple[list[Handle], list[Handle]]:
    """The places of all windows, each [channels, windows, images], and for every place but the first whether it beats
    all before it (0 or 1).
    """
    rows = pixel_rows(lo, _batched(lo, x))
    looked = gathered(lo, rows, windows.looked_at(), nowhere=rows.lo - 1)
    places = _parts(lo, looked, windows.places)
    wins: list[Handle] = []
    best = places[0]
    for place in places[1:]:
        wins.append(lo.b.positive(lo.b.sub(place, best)))
        best = lo.b.select(wins[-1], place, best)
    return places, wins


def _pixel_numbers(lo: Lowering, windows: Windows, like: Handle) -> list[Handle]:
    """For every place, which pixel it is: [channels, windows, images], the same for all channels and images."""
    index, side = windows.looked_at(), windows.windows
    starts = range(0, len(index), side)
    pixels = [[min(pixel, windows.pixels - 1) for pixel in index[start : start + side]] for start in starts]
    return [lo.b.broadcast(lo.b.constant(listed, shape=(1, side, 1)), like.shape) for listed in pixels]


def _spread(lo: Lowering, rows: Handle, windows: Windows, winner: Handle | None = None) -> Handle:
    """What every pixel is given by the windows that look at it, summed: [channels, pixels, images] from rows [channels,
    windows, images]. With `winner`, the place in each window that alone is given something.
    """
    lookers = windows.lookers()
    most = max(len(entries) for entries in lookers)
    padded = [entries + [-1] * (most - len(entries)) for entries in lookers]
    # By turn: each pixel's first window, then its second, ...
    entries = [pixel[turn] for turn in range(most) for pixel in padded]
    index = [windows.windows if entry < 0 else entry % windows.windows for entry in entries]
    given = gathered(lo, rows, index, nowhere=0)
    if winner is not None:
        place = lo.b.constant([max(entry, 0) // windows.windows for entry in entries], shape=(1, len(entries), 1))
        # Where a pixel has no window, it is given 0 whether it wins or not.
        distance = lo.b.sub(gathered(lo, winner, index, nowhere=0), place)
        wins = lo.b.positive(lo.b.sub(lo.b.constant(1), lo.b.mul(distance, distance)))
        given = lo.b.select(wins, given, lo.b.constant(0, frac=given.frac))
    return _sum_of_parts(lo, given, most)


def _sum_of_parts(lo: Lowering, x: Handle, parts: int) -> Handle:
    """[channels, parts * n, images] -> [channels, n, images]."""
    channels, rows, images = x.shape
    if parts > FEW:
        summed = lo.b.reduce_sum(lo.b.reshape(x, (channels, parts, rows // parts, images)), 1)
        return lo.b.reshape(summed, (channels, rows // parts, images))
    first, *others = _parts(lo, x, parts)
    for other in others:
        first = lo.b.add(first, other)
    return first


def _parts(lo: Lowering, x: Handle, parts: int) -> list[Handle]:
    side = x.shape[1] // parts
    return [lo.b.slice(x, 1, part * side, (part + 1) * side) for part in range(parts)]


def _divisors(windows: Windows, count_include_pad: bool, override: int | None) -> list[int]:
    """By what the sum of each window is divided. A window never counts what lies beyond the padding."""
    if override is not None:
        return [override] * windows.windows
    spans = []
    for axis in range(2):
        side, reach = windows.image[axis], windows.padding[axis] if count_include_pad else 0
        starts = [at * windows.stride[axis] - windows.padding[axis] for at in range(windows.output[axis])]
        spans.append([min(at + windows.kernel[axis], side + reach) - max(at, -reach) for at in starts])
    return [rows * columns for rows in spans[0] for columns in spans[1]]


def _divided(lo: Lowering, x: Handle, divisors: list[int]) -> Handle:
    """[channels, windows, images], each window by its divisor."""
    if len(set(divisors)) == 1:
        return scale(lo.b, x, Fraction(1, divisors[0]))
    shares = [((1 << DIVISOR_FRAC + 1) + divisor) // (2 * divisor) for divisor in divisors]
    return lo.b.mul(x, lo.b.constant(shares, frac=DIVISOR_FRAC, shape=(1, len(shares), 1)))


def _batched(lo: Lowering, x: Handle) -> Handle:
    """One picture [channels, height, width] is a batch of one."""
    return x if len(x.shape) == 4 else lo.b.reshape(x, (1, *x.shape))


def _windows(
    image: tuple[int, ...],
    output: tuple[int, ...],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Windows:
    kernel_sides = pair(kernel, (1, 1))
    return Windows(
        image=(image[-2], image[-1]),
        output=(output[-2], output[-1]),
        kernel=kernel_sides,
        stride=pair(stride, kernel_sides),
        padding=pair(padding, (0, 0)),
        dilation=pair(dilation, (1, 1)),
    )
