"""Where the windows of a convolution or pooling lie, as indices of one image; and the layout that makes them cheap.

Windows are gathered from [channels, pixels, images]: the batch lies innermost, so that one entry of the index moves a
whole row of memory, one index serves every channel and image (kernel * output pixels entries, whatever the channels
and the batch), and the product with the kernels needs no further copy. Measured against gathering from
[images, channels * pixels]: 12 to 40 times faster at 128 images of 28x28.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from proofs.exact.builder import Handle
from proofs.exact.compiler.hoist import transposed
from proofs.exact.compiler.lowering import Lowering


@dataclass(frozen=True, slots=True)
class Windows:
    """A grid of `output` windows over an image of `image` pixels, each looking at kernel[0] * kernel[1] of them.

    Every field is (vertical, horizontal). Where a window looks beyond the image (padding, or a last window that
    `ceil_mode` lets hang over), the index says `nowhere`: one place past the pixels.
    """

    image: tuple[int, int]
    output: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def pixels(self) -> int:
        return self.image[0] * self.image[1]

    @property
    def windows(self) -> int:
        return self.output[0] * self.output[1]

    @property
    def places(self) -> int:
        """Of one window."""
        return self.kernel[0] * self.kernel[1]

    def looked_at(self) -> list[int]:
        """[places * windows]: which pixel, by place in the window and then by window; `pixels` for nowhere."""
        index = []
        for (i, j), (row, column) in product(_grid(self.kernel), _grid(self.output)):
            y = row * self.stride[0] - self.padding[0] + i * self.dilation[0]
            x = column * self.stride[1] - self.padding[1] + j * self.dilation[1]
            inside = 0 <= y < self.image[0] and 0 <= x < self.image[1]
            index.append(y * self.image[1] + x if inside else self.pixels)
        return index

    def looked_from(self) -> list[int]:
        """[places * pixels]: the window in which each pixel stands at each place, by place and then by pixel;
        `windows` for none.
        """
        index = [self.windows] * (self.places * self.pixels)
        for entry, pixel in enumerate(self.looked_at()):
            if pixel < self.pixels:
                place, window = divmod(entry, self.windows)
                index[place * self.pixels + pixel] = window
        return index

    def lookers(self) -> list[list[int]]:
        """For every pixel, the entries of `looked_at` that name it."""
        found: list[list[int]] = [[] for _ in range(self.pixels)]
        for entry, pixel in enumerate(self.looked_at()):
            if pixel < self.pixels:
                found[pixel].append(entry)
        return found


def _grid(sides: tuple[int, int]) -> list[tuple[int, int]]:
    return [(row, column) for row in range(sides[0]) for column in range(sides[1])]


def pair(values: Sequence[int] | int, default: tuple[int, int]) -> tuple[int, int]:
    """PyTorch writes [a] for (a, a) and [] for the default."""
    listed = [values] if isinstance(values, int) else list(values)
    if not listed:
        return default
    return (listed[0], listed[-1])


def pixel_rows(lo: Lowering, x: Handle) -> Handle:
    """[images, channels, height, width] -> [channels, height * width, images]."""
    images, channels, height, width = x.shape
    return lo.b.reshape(transposed(lo, x, (1, 2, 3, 0)), (channels, height * width, images))


def image_rows(lo: Lowering, rows: Handle, sides: tuple[int, int]) -> Handle:
    """[channels, height * width, images] -> [images, channels, height, width], as a view."""
    channels, _, images = rows.shape
    return transposed(lo, lo.b.reshape(rows, (channels, *sides, images)), (3, 0, 1, 2))


def gathered(lo: Lowering, rows: Handle, index: Sequence[int], nowhere: int) -> Handle:
    """[channels, pixels, images] -> [channels, len(index), images]; `nowhere` (an integer at the scale of the rows)
    is what stands past the last pixel.
    """
    channels, pixels, images = rows.shape
    if pixels in index:
        outside = lo.b.broadcast(lo.b.constant(nowhere, frac=rows.frac), (channels, 1, images))
        rows = lo.b.concat(rows, outside, 1)
    return lo.b.gather(rows, lo.b.constant(tuple(index)), 1)
