"""What the products of a model really ran in: the proof behind `precision=`, and its health.

Backends note every product of a layer whose precision a recipe decides, where it happens and from
the operands it is given: a layer that fell back to another type says so itself. Nothing is noted
and nothing costs time outside of `recording`.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

GemmKind = Literal["fprop", "dgrad", "wgrad"]
Role = Literal["input", "weight", "gradient", "gradient for weights"]


class Gemm(NamedTuple):
    """One kind of product: whose, which of the three, and the formats of operands and result.

    Formats read `e4m3 1x128 power_of_two`, `bf16`, `fp32`: type, tile, kind of scale.
    """

    layer: str
    kind: GemmKind
    left: str
    right: str
    output: str


class Range(NamedTuple):
    """How a tensor fits its FP8 format.

    `overflow` is the share of elements cut to the largest number, `underflow` that of elements that
    were not zero and became it.
    """

    amax: float
    smallest_scale: float
    largest_scale: float
    overflow: float
    underflow: float

    def joined(self, other: "Range") -> "Range":
        """The worse of both in every figure."""
        return Range(
            max(self.amax, other.amax),
            min(self.smallest_scale, other.smallest_scale),
            max(self.largest_scale, other.largest_scale),
            max(self.overflow, other.overflow),
            max(self.underflow, other.underflow),
        )


class GemmLog:
    """Products with the number of times each ran, and the ranges of their FP8 operands."""

    def __init__(self) -> None:
        self.calls: Counter[Gemm] = Counter()
        self.ranges: dict[tuple[str, Role], Range] = {}

    def product(self, gemm: Gemm) -> None:
        """Count a product."""
        self.calls[gemm] += 1

    def range(self, layer: str, role: Role, found: Range) -> None:
        """Keep the worst range of an operand."""
        known = self.ranges.get((layer, role))
        self.ranges[layer, role] = found if known is None else known.joined(found)


# Of the process and not of a context: backward passes run on threads of their own on a GPU.
_log: GemmLog | None = None


@contextmanager
def recording() -> Iterator[GemmLog]:
    """Note every product of this process inside of the block."""
    global _log  # noqa: PLW0603 - see above
    before, _log = _log, GemmLog()
    try:
        yield _log
    finally:
        _log = before


def is_recording() -> bool:
    """Whether anybody records, for who would have to work to know what to note."""
    return _log is not None


def note(gemm: Gemm) -> None:
    """Count a product, if somebody records."""
    if _log is not None:
        _log.product(gemm)


def note_range(layer: str, role: Role, measure: Callable[[], Range]) -> None:
    """Measure and keep the range of an operand, if somebody records."""
    if _log is not None:
        _log.range(layer, role, measure())
