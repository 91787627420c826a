"""Reading and writing the canonical byte forms: explicit big-endian fields, nothing self-describing, nothing pickled.

Elements of tensors are little-endian two's complement, as they lie in memory (docs/protocol.md section 1).
"""

from __future__ import annotations

from proofs.exact.tensor_type import MAX_RANK, TensorType

MAX_NAME_FIELD = 255


class FormatError(ValueError):
    """Bytes that are not the canonical form of anything."""


class Writer:
    """Appends fixed-width fields."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def unsigned(self, width: int, value: int) -> None:
        self.parts.append(value.to_bytes(width, "big"))

    def signed(self, width: int, value: int) -> None:
        self.parts.append(value.to_bytes(width, "big", signed=True))

    def raw(self, data: bytes) -> None:
        self.parts.append(data)

    def name(self, name: str) -> None:
        encoded = name.encode()
        self.unsigned(1, len(encoded))
        self.raw(encoded)

    def type(self, type_: TensorType) -> None:
        self.unsigned(1, len(type_.shape))
        for side in type_.shape:
            self.unsigned(4, side)
        self.unsigned(1, type_.bits)
        self.signed(2, type_.frac)

    def finish(self) -> bytes:
        return b"".join(self.parts)


class Reader:
    """Reads the same fields back. Every read checks that the bytes are there first, so a size claimed by a stranger
    never allocates more than the bytes that came. Raises FormatError."""

    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)
        self.place = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.place

    def raw(self, size: int) -> memoryview:
        if size > self.left:
            raise FormatError(f"{size} bytes wanted at {self.place}, {self.left} left")
        start, self.place = self.place, self.place + size
        return self.data[start : self.place]

    def expect(self, data: bytes, what: str) -> None:
        if bytes(self.raw(len(data))) != data:
            raise FormatError(f"not {what}")

    def unsigned(self, width: int) -> int:
        return int.from_bytes(self.raw(width), "big")

    def signed(self, width: int) -> int:
        return int.from_bytes(self.raw(width), "big", signed=True)

    def count(self, width: int, least_bytes: int, what: str) -> int:
        """A number of items of at least `least_bytes` each. More than can follow is refused before any is built."""
        count = self.unsigned(width)
        if count * least_bytes > self.left:
            raise FormatError(f"{count} {what} can't fit in {self.left} bytes")
        return count

    def name(self) -> str:
        data = bytes(self.raw(self.unsigned(1)))
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"a name that isn't UTF-8: {data!r}") from error

    def type(self) -> TensorType:
        """Raises TensorError for a type that can't be."""
        rank = self.unsigned(1)
        if rank > MAX_RANK:
            raise FormatError(f"a tensor of {rank} axes")
        shape = tuple(self.unsigned(4) for _ in range(rank))
        return TensorType(shape, self.unsigned(1), self.signed(2))

    def finish(self) -> None:
        if self.left:
            raise FormatError(f"{self.left} bytes left over")
