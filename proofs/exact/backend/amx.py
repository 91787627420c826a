"""a · bᵀ of int8 and int16 integers on AMX tiles: operands in their plain form, the finished integers out.

A 16-bit product is four products of signed int8 slices, low and high. The tile unit multiplies 16 x 64 by 64 x 16 bytes
into 16 x 16 int32 in 16 cycles; eight tile registers hold two row blocks, two column blocks and their four products, so
every loaded tile is used twice. Two blocks are the two slices of 16-bit operands or two neighbours of 8-bit ones, and
one inner loop serves both. The four products are shifted and added before they leave the cache: where `torch._int_mm`
writes four int32 planes that somebody must read again, this writes the result once.

Exact while no int32 tile sum overflows: each sums at most k products of magnitude 2^14. Measured on one core of a Xeon
with AMX: 5 TOP/s, against 1.6 for `torch._int_mm`; 16 x 16 bits at n = 1024 in a fifth of float32's time.

Import only where `amx_support.usable()`: elsewhere LLVM has no such instructions and ends the process.
Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1 chapter 18, TDPBSSD.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, types

from proofs.exact.backend.amx_support import TILE_BYTES, TILE_SIZE

_I8, _I64 = ir.IntType(8), ir.IntType(64)
_POINTER = _I8.as_pointer()


def _instructions(function: Callable[..., Any]) -> Any:
    """A function that writes LLVM IR in place of its call; arguments that are literals reach it as literals."""
    return extending.intrinsic(prefer_literal=True)(function)


def _call(context: Any, builder: Any, name: str, tiles: tuple[int, ...], addressed: tuple[Any, ...] = ()) -> Any:
    """One tile instruction: immediate tile numbers, then the address and the stride if it has them."""
    arguments = [_I8(tile) for tile in tiles]
    if addressed:
        arguments += [builder.inttoptr(addressed[0], _POINTER), *addressed[1:]]
    signature = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, signature, name)
    builder.call(function, arguments)
    return context.get_dummy_value()


@_instructions
def _configure(typing_context: Any, address: Any) -> Any:
    """LDTILECFG from 64 bytes at `address`."""
    return types.void(types.intp), lambda c, b, _, args: _call(c, b, "llvm.x86.ldtilecfg", (), (args[0],))


@_instructions
def _release(typing_context: Any) -> Any:
    """TILERELEASE: no tile state is left for the system to save, nor for a library to stumble on."""
    return types.void(), lambda c, b, _, args: _call(c, b, "llvm.x86.tilerelease", ())


@_instructions
def _zero(typing_context: Any, tile: Any) -> Any:
    """TILEZERO."""
    number = tile.literal_value
    return types.void(tile), lambda c, b, _, args: _call(c, b, "llvm.x86.tilezero", (number,))


@_instructions
def _load(typing_context: Any, tile: Any, address: Any) -> Any:
    """TILELOADD of 1 KiB at `address`, which should be a multiple of 64: three times slower otherwise."""
    number = tile.literal_value
    return types.void(tile, types.intp), lambda c, b, _, args: _call(
        c, b, "llvm.x86.tileloadd64", (number,), (args[1], _I64(TILE_BYTES))
    )


@_instructions
def _store(typing_context: Any, tile: Any, address: Any) -> Any:
    """TILESTORED of 1 KiB."""
    number = tile.literal_value
    return types.void(tile, types.intp), lambda c, b, _, args: _call(
        c, b, "llvm.x86.tilestored64", (number,), (args[1], _I64(TILE_BYTES))
    )


@_instructions
def _dot(typing_context: Any, total: Any, a: Any, b: Any) -> Any:
    """TDPBSSD: total += a · b in int32."""
    numbers = (total.literal_value, a.literal_value, b.literal_value)
    return types.void(total, a, b), lambda c, builder, _, args: _call(c, builder, "llvm.x86.tdpbssd", numbers)


def _vector(builder: Any, address: Any, kind: Any, count: int, skip: int = 0) -> Any:
    """`count` integers that lie at `address` + `skip` bytes, in order."""
    pointer = builder.inttoptr(builder.add(address, _I64(skip)), ir.VectorType(kind, count).as_pointer())
    return builder.load(pointer, align=1)


def _put(builder: Any, vector: Any, address: Any, skip: int = 0) -> None:
    pointer = builder.inttoptr(builder.add(address, _I64(skip)), vector.type.as_pointer())
    builder.store(vector, pointer, align=1)


def _every(vector_type: Any, value: int) -> Any:
    return ir.Constant(vector_type, [value] * vector_type.count)


def _shuffle(builder: Any, x: Any, y: Any, places: list[int]) -> Any:
    """The elements of x followed by y that stand at `places`."""
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places))


def _slice(builder: Any, x: Any, piece: int) -> Any:
    """Slice 0: the low byte as a signed number. Slice 1 of 16 bits: what remains of the other byte."""
    if piece == 1:
        x = builder.ashr(builder.add(x, _every(x.type, 128)), _every(x.type, 8))
    as_bytes = ir.VectorType(_I8, x.type.count)
    return x if x.type == as_bytes else builder.trunc(x, as_bytes)


@_instructions
def _cut(typing_context: Any, bits: Any, piece: Any, source: Any, target: Any) -> Any:
    """Slice `piece` of 64 neighbouring integers of `bits` bits."""
    kind, number = ir.IntType(bits.literal_value), piece.literal_value

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        _put(builder, _slice(builder, _vector(builder, arguments[2], kind, 64), number), arguments[3])
        return context.get_dummy_value()

    return types.void(bits, piece, types.intp, types.intp), generate


@_instructions
def _weave(typing_context: Any, bits: Any, piece: Any, source: Any, step: Any, target: Any) -> Any:
    """Slice `piece` of four lines of 16 integers, `step` bytes apart: the four of each column side by side."""
    kind, number = ir.IntType(bits.literal_value), piece.literal_value

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        source, step, target = arguments[2:]
        lines = []
        for _line in range(4):
            lines.append(_slice(builder, _vector(builder, source, kind, 16), number))
            source = builder.add(source, step)
        halves = [_shuffle(builder, lines[i], lines[i + 1], list(range(32))) for i in (0, 2)]
        order = [16 * line + column for column in range(16) for line in range(4)]
        _put(builder, _shuffle(builder, halves[0], halves[1], order), target)
        return context.get_dummy_value()

    return types.void(bits, piece, types.intp, types.intp, types.intp), generate


@_instructions
def _turn(typing_context: Any, source: Any, target: Any) -> Any:
    """Transposes 16 x 16 words of four bytes: a tile of a becomes the tile of b of the same elements, and the reverse.

    Four rounds of merging: in each, rows that are 1, 2, 4, 8 apart exchange their off-diagonal blocks.
    """

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        rows = [_vector(builder, arguments[0], ir.IntType(32), 16, 64 * row) for row in range(16)]
        for far in (1, 2, 4, 8):
            upper = [place if not place & far else 16 + place - far for place in range(16)]
            lower = [place + far if not place & far else 16 + place for place in range(16)]
            for row in range(16):
                if not row & far:
                    x, y = rows[row], rows[row + far]
                    rows[row], rows[row + far] = _shuffle(builder, x, y, upper), _shuffle(builder, x, y, lower)
        for number, row in enumerate(rows):
            _put(builder, row, arguments[1], 64 * number)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@_instructions
def _finish(typing_context: Any, bits: Any, tiles: Any, sums: Any, second: Any, target: Any) -> Any:
    """One row of 16 results of `bits` bits from the int32 sums of 1, 2 or 4 tiles, low slices first.

    Two: the other is `second` bytes on. Four: they follow each other, and the middle two weigh the same.
    """
    kind, count = ir.IntType(bits.literal_value), tiles.literal_value

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        sums, second, target = arguments[2:]
        wide = ir.VectorType(kind, 16)
        word = ir.IntType(32)

        def widened(x: Any) -> Any:
            return x if kind.width == 32 else builder.sext(x, wide)

        def shifted(x: Any, shift: int) -> Any:
            return builder.shl(widened(x), _every(wide, shift))

        total = widened(_vector(builder, sums, word, 16))
        if count == 2:
            total = builder.add(total, shifted(_vector(builder, builder.add(sums, second), word, 16), 8))
        elif count == 4:
            low, mid, high = (_vector(builder, sums, word, 16, TILE_SIZE * tile) for tile in (1, 2, 3))
            total = builder.add(total, shifted(builder.add(low, mid), 8))
            total = builder.add(total, shifted(high, 16))
        _put(builder, total, target)
        return context.get_dummy_value()

    return types.void(bits, tiles, types.intp, types.intp, types.intp), generate


_INT = types.int64
_TILES = types.Array(types.int8, 1, "C")
_OFFSETS = types.Array(types.int64, 1, "C")


def _flat(kind: Any) -> Any:
    """Elements as they lie in memory; read-only, so that numba takes writable arrays and others."""
    return types.Array(kind, 1, "C", readonly=True)


def _packer(kind: Any) -> Any:
    """`pack` for a source of int8 or int16."""
    bits = kind.bitwidth
    size = bits // 8

    @njit(types.void(_flat(kind), _OFFSETS, *[_INT] * 7, types.boolean, types.boolean, _TILES), cache=True, nogil=True)
    def pack(
        source: Any, offsets: Any, first: Any, last: Any, blocks: Any, rows: Any, k: Any, step: Any, slices: Any,
        k_is_last: Any, for_b: Any, packed: Any,
    ) -> None:  # fmt: skip
        """Cuts row blocks `first`..`last` of a batch of [rows, k] operands, `blocks` each, into tiles of slices.

        `packed` is [batch, block, slice, k block, 1 KiB]; what sticks out of the operand is zero. Element (r, i) of
        batch j is source[offsets[j] + r * step + i] if `k_is_last`, else source[offsets[j] + i * step + r].
        """
        k_blocks = (k + 63) // 64
        edge = np.zeros(1024, kind)  # a block that is not whole, with zeros around it
        tile = np.zeros(1024, np.int8)
        packed_at = packed.ctypes.data
        for number in range(first, last):
            block = number % blocks
            height = min(16, rows - block * 16)
            for k_block in range(k_blocks):
                depth = min(64, k - k_block * 64)
                lines, length = (height, depth) if k_is_last else (depth, height)
                corner = offsets[number // blocks]
                corner += block * 16 * step + k_block * 64 if k_is_last else block * 16 + k_block * 64 * step
                source_at, bytes_on = source.ctypes.data + corner * size, step * size
                if height < 16 or depth < 64:
                    edge[:] = 0
                    whole = 64 if k_is_last else 16
                    for line in range(lines):
                        for i in range(length):
                            edge[line * whole + i] = source[corner + line * step + i]
                    source_at, bytes_on = edge.ctypes.data, whole * size
                for piece in range(slices):
                    at = packed_at + ((number * slices + piece) * k_blocks + k_block) * 1024
                    straight = k_is_last != for_b
                    to = at if straight else tile.ctypes.data
                    for line in range(16):
                        if k_is_last:
                            if piece == 0:
                                _cut(bits, 0, source_at + line * bytes_on, to + line * 64)
                            else:
                                _cut(bits, 1, source_at + line * bytes_on, to + line * 64)
                        elif piece == 0:
                            _weave(bits, 0, source_at + 4 * line * bytes_on, bytes_on, to + line * 64)
                        else:
                            _weave(bits, 1, source_at + 4 * line * bytes_on, bytes_on, to + line * 64)
                    if not straight:
                        _turn(to, at)

    return pack


def _multiplier(kind: Any) -> Any:
    """`multiply` for a result of int32 or int64."""
    bits = kind.bitwidth
    size = bits // 8

    @njit(
        types.void(_TILES, _TILES, types.Array(types.uint8, 1, "C"), *[_INT] * 8, types.Array(kind, 1, "C")),
        cache=True,
        nogil=True,
    )
    def multiply(
        a: Any, b: Any, config: Any, first: Any, last: Any, p: Any, q: Any, k_blocks: Any, m: Any, n: Any, columns: Any,
        out: Any,
    ) -> None:  # fmt: skip
        """Products of packed operands: `out` is [batch, m, n], flat.

        A pair of tiles is both slices of a row block (p or q = 2) or two row blocks of one slice. Row pairs
        `first`..`last` of all batches are computed, `columns` column pairs at a time so that they stay in the cache.
        """
        row_step, column_step = 32 // p, 32 // q  # rows of out that a pair covers
        row_pairs = (m + row_step - 1) // row_step
        column_pairs = (n + column_step - 1) // column_step
        pair = 2 * k_blocks * 1024
        memory = np.empty(4 * 256 + 16, np.int32)
        sums_at = memory.ctypes.data + -memory.ctypes.data % 64
        edge = np.empty(16, kind)
        _configure(config.ctypes.data)
        number = first
        while number < last:
            batch = number // row_pairs
            stop = min(last, (batch + 1) * row_pairs)
            for left in range(0, column_pairs, columns):
                for row_pair in range(number - batch * row_pairs, stop - batch * row_pairs):
                    for column_pair in range(left, min(left + columns, column_pairs)):
                        x = a.ctypes.data + (batch * row_pairs + row_pair) * pair
                        y = b.ctypes.data + (batch * column_pairs + column_pair) * pair
                        _zero(0)
                        _zero(1)
                        _zero(2)
                        _zero(3)
                        for k_block in range(k_blocks):
                            _load(4, x + k_block * 1024)
                            _load(6, y + k_block * 1024)
                            _load(5, x + (k_blocks + k_block) * 1024)
                            _load(7, y + (k_blocks + k_block) * 1024)
                            _dot(0, 4, 6)
                            _dot(1, 4, 7)
                            _dot(2, 5, 6)
                            _dot(3, 5, 7)
                        _store(0, sums_at)
                        _store(1, sums_at + 1024)
                        _store(2, sums_at + 2048)
                        _store(3, sums_at + 3072)
                        for i in range(2 // p):
                            for j in range(2 // q):
                                top, start = row_pair * row_step + 16 * i, column_pair * column_step + 16 * j
                                from_at = sums_at + (2 * i + j) * 1024
                                width = min(16, n - start)
                                for row in range(min(16, m - top)):
                                    place = (batch * m + top + row) * n + start
                                    to = out.ctypes.data + place * size if width == 16 else edge.ctypes.data
                                    if p * q == 4:
                                        _finish(bits, 4, from_at + row * 64, 0, to)
                                    elif p * q == 2:
                                        _finish(bits, 2, from_at + row * 64, 1024 * p, to)
                                    else:
                                        _finish(bits, 1, from_at + row * 64, 0, to)
                                    if width < 16:
                                        for column in range(width):
                                            out[place + column] = edge[column]
            number = stop
        _release()

    return multiply


PACK = {kind: _packer(numba_kind) for kind, numba_kind in (("int8", types.int8), ("int16", types.int16))}
MULTIPLY = {kind: _multiplier(numba_kind) for kind, numba_kind in (("int32", types.int32), ("int64", types.int64))}
