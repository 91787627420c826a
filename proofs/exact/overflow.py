"""The one way in which a valid program can end early: a CHECK met an element outside its bounds."""

from __future__ import annotations


class Overflow(ArithmeticError):  # noqa: N818 — the name of the state in which the unit ends
    """`element` (place in row-major order) of the operand of a CHECK is `value`, which is out of its bounds.

    A step's overflow is one fact, whoever computes it in whatever order: the failing CHECK of the least operation
    number, and its first failing element. All that this CHECK depends on lies before it and passed, so an executor that
    runs operations out of order finds the same by taking the least of those that failed. `operation` is the place in
    `Program.ops`, None until somebody who knows the program adds it (`at`).
    """

    def __init__(self, element: int, value: int, operation: int | None = None) -> None:
        where = "a check" if operation is None else f"operation {operation}, check"
        super().__init__(f"{where}: element {element} is {value}, out of bounds")
        self.element = element
        self.value = value
        self.operation = operation

    def at(self, operation: int) -> Overflow:
        """The same, of this operation of a program."""
        return Overflow(self.element, self.value, operation)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Overflow):
            return NotImplemented
        return (self.element, self.value, self.operation) == (other.element, other.value, other.operation)

    def __hash__(self) -> int:
        return hash((self.element, self.value, self.operation))
