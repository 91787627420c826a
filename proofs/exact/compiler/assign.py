"""Which role, and so which format, each node of a calibrated graph has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from proofs.exact.compiler.calibrate import Calibration
from proofs.exact.compiler.errors import Origin
from proofs.exact.compiler.fold import Folded
from proofs.exact.compiler.formats import LEAST_MASKED, LEAST_PARAMETER, NumberFormat, Options
from proofs.exact.compiler.interpret import PARTS, VIEWS, is_float
from proofs.exact.compiler.trace import Leaf, LeafKind, Trace


class Formats:
    """Formats by node, and the words that other modules ask them by."""

    def __init__(self, trace: Trace, folded: Folded, calibration: Calibration, options: Options) -> None:
        self.leaves = trace.by_node
        self.updates: dict[str, fx.Node] = dict(
            zip((leaf.name for leaf in trace.carried), folded.outputs[:-1], strict=True)
        )
        self.calibration = calibration
        self.options = options
        self._squares = _squares(folded, {leaf.name: node for node, leaf in self.leaves.items()}, self.updates)
        self._least = _least(self.leaves, self.updates)
        # One size for all: a mask added to scores must end below them, whatever they grow to.
        self._masked = max([LEAST_MASKED, *(calibration.magnitude(node) for node in calibration.masked)])
        self._known: dict[tuple[fx.Node, int], NumberFormat] = {}

    def of(self, node: fx.Node, place: int = 0) -> NumberFormat:
        """The format of a float node (of one of its results, if it has several)."""
        known = self._known.get((node, place))
        if known is None:
            role = self.options.square if node in self._squares else self.options.wide
            known = self._known[node, place] = role.format(self.magnitude(node, place))
        return known

    def magnitude(self, node: fx.Node, place: int = 0) -> float:
        """As calibrated, but at least what its kind makes likely."""
        least = max(self._least.get(node, 0.0), self._masked if node in self.calibration.masked else 0.0)
        return max(self.calibration.magnitude(node, place), least)

    def module_of(self, node: fx.Node) -> str:
        return origin_of(node).module

    @property
    def mask_exponent(self) -> int:
        """-2^this lies below every number that is masked with -inf: adding it saturates."""
        exponents = [self.of(node).bits - self.of(node).frac for node in self.calibration.masked if is_float(node)]
        return max(exponents, default=10)


def origin_of(node: fx.Node) -> Origin:
    found = node.meta.get("origin", Origin())
    assert isinstance(found, Origin)
    return found


def _least(leaves: Mapping[fx.Node, Leaf], updates: Mapping[str, fx.Node]) -> dict[fx.Node, float]:
    """Parameters that start at zero do not stay there; before and after the step they have one format."""
    least: dict[fx.Node, float] = {}
    for node, leaf in leaves.items():
        if leaf.kind is LeafKind.PARAMETER and leaf.example.is_floating_point():
            least[node] = LEAST_PARAMETER
            least[updates[leaf.name]] = LEAST_PARAMETER
    return least


_SUMS = frozenset(
    {
        "aten.sum.default",
        "aten.sum.dim_IntList",
        "aten.mean.default",
        "aten.mean.dim",
        "aten.add.Tensor",
        "aten.add.Scalar",
        "aten.sub.Tensor",
        "aten.sub.Scalar",
        "aten.maximum.default",
        "aten.minimum.default",
        "aten.clamp.default",
        "aten.clamp_min.default",
        "aten.lerp.Scalar",
        "aten.lerp.Tensor",
        "aten.where.self",
    }
)
"""A result is of the kind of its operands."""
_SCALED = frozenset({"aten.mul.Tensor", "aten.mul.Scalar", "aten.div.Tensor", "aten.div.Scalar"})
"""The same, where the other operand is a number, or a scalar known beforehand."""


_ROOTS = frozenset({"aten.sqrt.default", "aten.rsqrt.default"})


def _squares(folded: Folded, inputs: Mapping[str, fx.Node], updates: Mapping[str, fx.Node]) -> set[fx.Node]:
    """Squares and what roots are taken of, with the sums, means and states between: half of their bits are gone after
    the root."""
    squares: set[fx.Node] = set()
    known, live = set(folded.tables) | set(folded.constants), set(folded.live)
    while True:
        before = len(squares)
        for node in folded.live:
            if is_float(node) and node not in squares and _is_square(node, squares, known):
                squares.add(node)
        for node in reversed(folded.live):
            if node in squares or _takes_root(node):
                squares.update(operand for operand in _of_the_same_kind(node, known) if is_float(operand))
        for name, update in updates.items():
            if update in squares and is_float(inputs[name]):
                squares.add(inputs[name])
            elif inputs[name] in squares and update in live:
                squares.add(update)
        if len(squares) == before:
            return squares


def _is_square(node: fx.Node, squares: set[fx.Node], known: set[fx.Node]) -> bool:
    target, args = str(node.target), node.args
    first = args[0] if args else None
    if target == "aten.pow.Tensor_Scalar" and args[1] in (2, 2.0):
        return True
    if target == "aten.mul.Tensor" and _base(first, known) is _base(args[1], known):
        return True
    if target == "aten.addcmul.default":
        return _base(args[1], known) is _base(args[2], known) or first in squares
    return not _takes_root(node) and any(operand in squares for operand in _of_the_same_kind(node, known))


def _of_the_same_kind(node: fx.Node, known: set[fx.Node]) -> list[fx.Node]:
    """The operands that are squares if the node is one, and the other way round."""
    target, args = str(node.target), node.args
    first = args[0] if args and isinstance(args[0], fx.Node) else None
    if target in _SUMS:
        return [operand for operand in node.all_input_nodes if operand not in known]
    if first is None or first in known:
        return []
    scaled = target in _SCALED and (args[1] in known or not isinstance(args[1], fx.Node))
    same = scaled or node.target in VIEWS or node.target in PARTS or target == "aten.addcmul.default"
    return [first] if same or _takes_root(node) else []


def _takes_root(node: fx.Node) -> bool:
    target = str(node.target)
    return target in _ROOTS or (target == "aten.pow.Tensor_Scalar" and node.args[1] in (0.5, -0.5))


def _base(argument: Any, known: set[fx.Node]) -> Any:
    """What an argument is a multiple of: 0.01 * g is one of g."""
    while isinstance(argument, fx.Node) and argument not in known:
        args = argument.args
        scaled = str(argument.target) in _SCALED and (args[1] in known or not isinstance(args[1], fx.Node))
        if not scaled and argument.target not in VIEWS:
            break
        argument = args[0]
    return argument if isinstance(argument, fx.Node) else object()
