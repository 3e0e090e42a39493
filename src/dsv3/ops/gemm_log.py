"""What the products of a model really ran in: the proof behind `precision=`, and its health.

Backends note every product of a layer whose precision a recipe decides, where it happens and from
the operands it is given: a layer that fell back to another type says so itself. A layer that was
given no rows notes its products all the same. Nothing is noted and nothing costs time outside of
`recording`.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch

GemmKind = Literal["fprop", "dgrad", "wgrad", "backward"]
"""`backward`: of the backward pass of what is no layer with a weight, as attention."""
Role = Literal["input", "weight", "gradient", "gradient for weights"]


class Gemm(NamedTuple):
    """One kind of product: whose, which of the three, and the formats of operands and result.

    Formats read `e4m3 1x128 power_of_two`, `e5m2 tensor fp32`, `bf16`, `fp32`: type, tile (rows x
    columns of the operand as it is stored), kind of scale. The log itself finds out whether the
    product ran again, in a backward pass.
    """

    layer: str
    kind: GemmKind
    left: str
    right: str
    output: str
    recomputed: bool = False


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
        again = gemm.kind == "fprop" and in_backward()
        self.calls[gemm._replace(recomputed=again)] += 1

    def range(self, layer: str, role: Role, found: Range) -> None:
        """Keep the worst range of an operand."""
        known = self.ranges.get((layer, role))
        self.ranges[layer, role] = found if known is None else known.joined(found)


# Of the process and not of a context: backward passes run on threads of their own on a GPU.
_log: GemmLog | None = None


def in_backward() -> bool:
    """Whether autograd is in the middle of a backward pass, on this thread."""
    return torch._C._current_autograd_node() is not None


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
