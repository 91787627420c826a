"""One operation as LLVM instructions, on 32 bits where intervals allow it and on 64 otherwise.

Sums, differences and products are taken modulo 2^32 or 2^64; the static interval of the result says that nothing is
lost. Whatever looks at a value's order (shifts, clamps, comparisons) runs at a width that holds the operand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from proofs.exact.opcodes import Opcode
from proofs.exact.permutation import mix64
from proofs.exact.ranges import ValueInfo

FLOAT64_DIVIDES = 2**52
"""x + y below this: the double nearest to x / y never reaches an integer that x / y does not."""
ESTIMATES_DIVIDE = 2**62


@dataclass(frozen=True, slots=True)
class Word:
    """An integer in a virtual register (or written out): its name and width, 32 or 64 bits."""

    name: str
    bits: int


@dataclass(slots=True)
class Code:
    """Lines of a function body under construction."""

    lines: list[str] = field(default_factory=list)
    names: int = 0
    intrinsics: set[str] = field(default_factory=set)

    def fresh(self) -> str:
        self.names += 1
        return f"%v{self.names}"

    def line(self, text: str) -> None:
        self.lines.append(f"  {text}")

    def label(self, name: str) -> None:
        self.lines.append(f"{name}:")

    def assign(self, text: str) -> str:
        name = self.fresh()
        self.line(f"{name} = {text}")
        return name

    def binary(self, operation: str, a: Word, b: Word | int) -> Word:
        """Both at the width of `a`."""
        right = b.name if isinstance(b, Word) else str(b)
        return Word(self.assign(f"{operation} i{a.bits} {a.name}, {right}"), a.bits)

    def call(self, intrinsic: str, kind: str, *arguments: str) -> str:
        """An overloaded intrinsic of one type."""
        name = f"@llvm.{intrinsic}.{kind.replace('double', 'f64')}"
        self.intrinsics.add(f"declare {kind} {name}({', '.join([kind] * len(arguments))})")
        return self.assign(f"call {kind} {name}({', '.join(f'{kind} {argument}' for argument in arguments)})")

    def least(self, a: Word, b: int) -> Word:
        return Word(self.call("smin", f"i{a.bits}", a.name, str(b)), a.bits)

    def greatest(self, a: Word, b: int | Word) -> Word:
        return Word(self.call("smax", f"i{a.bits}", a.name, b.name if isinstance(b, Word) else str(b)), a.bits)

    def wide(self, a: Word, bits: int) -> Word:
        """The same integer, or its low bits, at another width."""
        if a.bits == bits:
            return a
        if not a.name.startswith("%"):
            return Word(str(wrapped(int(a.name), bits)), bits)
        return Word(self.assign(f"{'sext' if bits > a.bits else 'trunc'} i{a.bits} {a.name} to i{bits}"), bits)

    def compare(self, predicate: str, a: Word, b: Word | int) -> str:
        """An i1."""
        right = b.name if isinstance(b, Word) else str(b)
        return self.assign(f"icmp {predicate} i{a.bits} {a.name}, {right}")

    def choose(self, condition: str, a: Word, b: Word) -> Word:
        return Word(self.assign(f"select i1 {condition}, i{a.bits} {a.name}, i{b.bits} {b.name}"), a.bits)

    def to_double(self, a: Word) -> str:
        return self.assign(f"sitofp i{a.bits} {a.name} to double")

    def floor(self, double: str, bits: int) -> Word:
        whole = self.call("floor", "double", double)
        return Word(self.assign(f"fptosi double {whole} to i{bits}"), bits)


def wrapped(value: int, bits: int) -> int:
    """The integer of `bits` two's complement bits that is `value` modulo 2^bits."""
    return ((value + (1 << (bits - 1))) & ((1 << bits) - 1)) - (1 << (bits - 1))


def width(lo: int, hi: int) -> int:
    """Bits of the register that holds lo..hi."""
    return 32 if lo >= -(2**31) and hi < 2**31 else 64


def emit(
    code: Code,
    opcode: Opcode,
    attributes: Sequence[int],
    words: Sequence[Word],
    infos: Sequence[ValueInfo],
    info: ValueInfo,
) -> Word:
    """The result of an elementwise operation (not LOOKUP, ONE_HOT, RANDOM or CHECK, which look at more than values)."""
    out = width(info.lo, info.hi)
    match opcode:
        case Opcode.ADD | Opcode.SUB | Opcode.MUL:
            left, right = (code.wide(word, out) for word in words)
            return code.binary(opcode.name.lower(), left, right)
        case Opcode.RESCALE:
            shift, bits = attributes
            return rescale(code, words[0], infos[0].lo, infos[0].hi, shift, bits)
        case Opcode.CLAMP:
            lo, hi = attributes
            return clamp(code, words[0], infos[0].lo, infos[0].hi, lo, hi)
        case Opcode.RELU:
            return code.wide(code.greatest(words[0], 0), out)
        case Opcode.POSITIVE:
            return Word(code.assign(f"zext i1 {code.compare('sgt', words[0], 0)} to i32"), 32)
        case Opcode.SELECT:
            condition = code.compare("ne", words[0], 0)
            return code.choose(condition, code.wide(words[1], out), code.wide(words[2], out))
        case Opcode.DIV_FLOOR:
            return divide(code, words[0], words[1], infos[0], infos[1], out)
        case Opcode.ISQRT:
            return root(code, words[0], infos[0], out)
        case _:
            raise NotImplementedError(opcode.name)


def rescale(code: Code, x: Word, lo: int, hi: int, shift: int, bits: int) -> Word:
    """A rounding shift and saturation of x in lo..hi."""
    half = 1 << shift >> 1
    if shift:
        # A half of 2^31 fits 32 bits beside a negative x; the shift by 32 would be left undefined there.
        x = code.binary("add", code.wide(x, 64 if shift >= 32 else max(x.bits, width(lo, hi + half))), half)
        x = code.binary("ashr", x, shift)
        lo, hi = (lo + half) >> shift, (hi + half) >> shift
    x = code.wide(x, width(lo, hi))
    return clamp(code, x, lo, hi, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def clamp(code: Code, x: Word, lo: int, hi: int, least: int, greatest: int) -> Word:
    """x in lo..hi cut to least..greatest; narrowed."""
    if hi <= least or lo >= greatest:
        only = least if hi <= least else greatest
        return Word(str(only), width(only, only))
    if lo < least:
        x = code.greatest(x, least)
    if hi > greatest:
        x = code.least(x, greatest)
    return code.wide(x, width(min(max(lo, least), greatest), min(max(hi, least), greatest)))


def divide(code: Code, x: Word, y: Word, a: ValueInfo, b: ValueInfo, out: int) -> Word:
    """floor(x / y), y >= 1. The quotient in double precision is exact or, for large operands, an estimate whose
    remainder is divided again and corrected in integers."""
    greatest = a.greatest_magnitude + b.hi
    if greatest >= ESTIMATES_DIVIDE:
        return code.wide(_divide_scalar(code, code.wide(x, 64), code.wide(y, 64)), out)
    divisor = code.to_double(y)
    quotient = code.assign(f"fdiv double {code.to_double(x)}, {divisor}")
    if greatest < FLOAT64_DIVIDES:
        return code.floor(quotient, out)
    x, y = code.wide(x, 64), code.wide(y, 64)
    estimate = code.floor(quotient, 64)
    rest = code.binary("sub", x, code.binary("mul", estimate, y))
    again = code.floor(code.assign(f"fdiv double {code.to_double(rest)}, {divisor}"), 64)
    rest = code.binary("sub", rest, code.binary("mul", again, y))
    total = code.binary("add", estimate, again)
    total = code.choose(code.compare("slt", rest, 0), code.binary("sub", total, 1), total)
    total = code.choose(code.compare("sge", rest, y), code.binary("add", total, 1), total)
    return code.wide(total, out)


def _divide_scalar(code: Code, x: Word, y: Word) -> Word:
    quotient = code.binary("sdiv", x, y)
    rest = code.binary("srem", x, y)
    return code.choose(code.compare("slt", rest, 0), code.binary("sub", quotient, 1), quotient)


def root(code: Code, x: Word, a: ValueInfo, out: int) -> Word:
    """floor(sqrt(x)), x >= 0: exact in double precision below 2^52, else off by one at most and corrected."""
    estimate = code.call("sqrt", "double", code.to_double(x))
    if a.hi < FLOAT64_DIVIDES:
        return code.floor(estimate, out)
    x, s = code.wide(x, 64), code.floor(estimate, 64)
    # Squares below 2^64 are compared without sign: the root of 2^63 - 1 may first be estimated as 3037000500.
    s = code.choose(code.compare("ugt", code.binary("mul", s, s), x), code.binary("sub", s, 1), s)
    more = code.binary("add", s, 1)
    return code.wide(code.choose(code.compare("ule", code.binary("mul", more, more), x), more, s), out)


def mixed(code: Code, word: Word) -> Word:
    """splitmix64 of one step (proofs/exact/permutation.py)."""
    z = code.binary("add", word, wrapped(0x9E3779B97F4A7C15, 64))
    z = code.binary("mul", code.binary("xor", z, code.binary("lshr", z, 30)), wrapped(0xBF58476D1CE4E5B9, 64))
    z = code.binary("mul", code.binary("xor", z, code.binary("lshr", z, 27)), wrapped(0x94D049BB133111EB, 64))
    return code.binary("xor", z, code.binary("lshr", z, 31))


def random(code: Code, seed: Word, t: Word, stream: int, bits: int, place: Word) -> Word:
    """Element `place` of RANDOM. The key is the same everywhere: the optimiser moves it out of the loop."""
    first = mixed(code, code.wide(seed, 64))
    key = mixed(
        code, code.binary("xor", mixed(code, code.binary("add", first, code.wide(t, 64))), wrapped(mix64(stream), 64))
    )
    top = code.binary("lshr", mixed(code, code.binary("add", key, place)), 64 - bits)
    return code.wide(top, width(0, (1 << bits) - 1))


def combined(code: Code, planes: Sequence[Word], shifts: Sequence[int], bits: int) -> Word:
    """The sum of planes times powers of two, modulo 2^bits."""
    total: Word | None = None
    for shift, same in _by_shift(planes, shifts):
        if shift >= bits:
            continue  # a multiple of 2^bits; and LLVM leaves such a shift undefined
        part = code.wide(_added(code, same), bits)
        part = code.binary("shl", part, shift) if shift else part
        total = part if total is None else code.binary("add", total, part)
    assert total is not None
    return total


def combined_and_rescaled(
    code: Code, planes: Sequence[Word], shifts: Sequence[int], plane_bound: int, shift: int, lo: int, hi: int, bits: int
) -> Word | None:
    """RESCALE of a product whose planes are not yet summed, on 32 bits: floors nest, so each plane but the highest
    hands on only what it carries. None where 32 bits may not hold it; the product is in lo..hi."""
    steps = _by_shift(planes, shifts)
    highest = steps[-1][0]
    if shift < highest or shift == 0:
        return None
    # The rounding half enters at the plane whose shift it is a multiple of.
    entry = max(index for index, (place, _) in enumerate(steps) if place <= shift - 1)
    carry_bound = 0
    for index, (place, same) in enumerate(steps):
        half = 1 << (shift - 1 - place) if index == entry else 0
        total = len(same) * plane_bound + carry_bound + half
        if total >= 2**31:
            return None
        carry_bound = (total >> (steps[index + 1][0] - place)) + 1 if index + 1 < len(steps) else 0
    carry: Word | None = None
    for index, (place, same) in enumerate(steps):
        word = _added(code, same)
        if carry is not None:
            word = code.binary("add", word, carry)
        if index == entry:
            word = code.binary("add", word, 1 << (shift - 1 - place))
        down = (steps[index + 1][0] if index + 1 < len(steps) else shift) - place
        carry = code.binary("ashr", word, down) if down else word
    assert carry is not None
    half = 1 << (shift - 1)
    return clamp(code, carry, (lo + half) >> shift, (hi + half) >> shift, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def _by_shift(planes: Sequence[Word], shifts: Sequence[int]) -> list[tuple[int, list[Word]]]:
    return [
        (shift, [plane for plane, own in zip(planes, shifts, strict=True) if own == shift])
        for shift in sorted(set(shifts))
    ]


def _added(code: Code, same: Sequence[Word]) -> Word:
    """Planes of equal shift: their sum fits 32 bits, as backend/layouts.py demands of a product."""
    total = same[0]
    for plane in same[1:]:
        total = code.binary("add", total, plane)
    return total
