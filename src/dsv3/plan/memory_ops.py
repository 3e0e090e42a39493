"""What single operations keep for the backward pass, and what they need while they run.

Written after `ops/` and `model/`, operation by operation, in bytes as torch's allocator gives them
out. A sequence of operations has two figures: what it keeps, and the most that is alive while it
runs, forward or backward.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

FP32 = 4
BF16 = 2
INT64 = 8

Part = Literal["activations", "dispatch", "logits", "fp8 copies"]


class Op(NamedTuple):
    """One operation; its output is counted where it is kept, or in `forward` of who makes it.

    `forward` and `backward` are alive while it runs, besides what it and the operations before it
    keep; gradients of weights are told apart, as the elements of each tensor. `copies` are FP8
    copies of these, kept too. The gradients of `wide` products come in FP32.
    """

    name: str
    kept: int = 0
    forward: int = 0
    backward: int = 0
    weights: tuple[int, ...] = ()
    part: Part = "activations"
    copies: int = 0
    wide: bool = False

    @property
    def held(self) -> int:
        """All that it keeps."""
        return self.kept + self.copies


@dataclass(frozen=True)
class GradientRule:
    """Bytes per weight of gradients: as they come, at most beside one, and kept to the step's end.

    FP32 gradients stay with their weights; BF16 ones are added to an FP32 sum, by way of an FP32
    copy, and go.
    """

    as_made: int
    copied: int
    stays: int

    def while_made(self, weights: Sequence[int]) -> int:
        """Bytes alive when an operation has just made the gradients of its weights."""
        return self.as_made * sum(weights) + self.copied * max(weights, default=0)

    def while_made_wide(self, weights: Sequence[int]) -> int:
        """The same if they come in FP32, as the sum has them."""
        return FP32 * sum(weights)

    def left(self, weights: Iterable[int]) -> int:
        """Bytes that are still there afterwards."""
        return self.stays * sum(weights)


GRADIENTS_FP32 = GradientRule(as_made=FP32, copied=0, stays=FP32)
GRADIENTS_MOVED = GradientRule(as_made=FP32, copied=0, stays=0)
"""FP32 gradients that go into room which is counted already: a sum, or a bucket."""
GRADIENTS_BF16 = GradientRule(as_made=2, copied=FP32, stays=0)


def kept(ops: Iterable[Op]) -> int:
    """Bytes that the backward pass of all of them needs."""
    return sum(op.held for op in ops)


def kept_by_part(ops: Iterable[Op]) -> dict[Part, int]:
    """The same by what they are of."""
    found: dict[Part, int] = {}
    for op in ops:
        found[op.part] = found.get(op.part, 0) + op.kept
        if op.copies:
            found["fp8 copies"] = found.get("fp8 copies", 0) + op.copies
    return found


def weights_of(ops: Iterable[Op]) -> int:
    """Elements of all their weights."""
    return sum(sum(op.weights) for op in ops)


def forward_peak(ops: Sequence[Op]) -> int:
    """The most that is alive while they run forward, beside what was there before."""
    sums = accumulate((op.held for op in ops), initial=0)
    next(sums)
    return max((so_far + op.forward for so_far, op in zip(sums, ops, strict=True)), default=0)


def backward_peak(ops: Sequence[Op], rule: GradientRule) -> int:
    """The most that is alive while they run backward, beside what was there before all of them."""
    alive, most = kept(ops), 0
    for op in reversed(ops):
        made = rule.while_made_wide(op.weights) if op.wide else rule.while_made(op.weights)
        most = max(most, alive + op.backward + made)
        alive += rule.left(op.weights) - op.held
    return most
