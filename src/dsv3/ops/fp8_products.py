"""Products of FP8 tensors as a tensor core with FP32 promotion computes them (section 3.3.2).

Both operands are [rows, K] with scales over runs of 128 along K. The terms of a run are summed,
the sum is multiplied with the two scales and added to an FP32 result, run by run in the order of K:
what cuBLAS does with its split accumulator, up to the rounding inside of a run, which is exact to
FP32 here. `Sums` makes the running sum as short as that of an H800.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dsv3.ops.fp8 import TILE, Rounded

TERMS_AT_ONCE = 32
"""Terms that a tensor core adds up before it touches its running sum."""


class Sums(NamedTuple):
    """How a running sum is kept.

    It is added to the FP32 result every `promote_every` terms (None: once, at the end), and keeps
    `accumulate_bits` significant bits, the others cut off every 32 terms (None: FP32). FP32 scales
    want a promotion within every tile.
    """

    promote_every: int | None = TILE
    accumulate_bits: int | None = None


def product(left: Rounded, right: Rounded, sums: Sums) -> Tensor:
    """left right^T: [M, K] and [N, K] to FP32 [M, N]."""
    (M, K), N = left.values.shape, right.values.shape[0]
    bits = sums.accumulate_bits
    out = left.values.new_zeros(M, N)
    for run in _runs(K, sums.promote_every or max(K, 1)):
        a, b = left.values[:, run], right.values[:, run].t()
        if left.inverse_scales is not None:
            _add_scaled(out, _sum(a, b, bits), left, right, run.start // TILE)
        elif bits is not None:
            out += _sum(a, b, bits)
        else:
            # Powers of two: scaled before the sum is what it is after it.
            out.addmm_(a, b)
    return out


def transposed(operand: Rounded) -> Rounded:
    """[K, rows] to [rows, K], for tiles that are blocks, or runs of 128 along K."""
    inverse = operand.inverse_scales
    return Rounded(operand.values.t(), None if inverse is None else inverse.t())


def cut(x: Tensor, bits: int) -> Tensor:
    """FP32 with all but the first `bits` significant bits cut off, toward zero."""
    return (x.view(torch.int32) & (-1 << (24 - bits))).view(torch.float32)


def _sum(a: Tensor, b: Tensor, bits: int | None) -> Tensor:
    """a b, the running sum cut every few terms."""
    if bits is None:
        return a @ b
    running = a.new_zeros(a.shape[0], b.shape[1])
    for few in _runs(a.shape[1], TERMS_AT_ONCE):
        running = cut(torch.addmm(running, a[:, few], b[few]), bits)
    return running


def _add_scaled(out: Tensor, summed: Tensor, left: Rounded, right: Rounded, tile: int) -> None:
    """out = fma(summed * left scale, right scale, out); FP64 holds the second product exactly."""
    once = summed * _scale_of_rows(left, tile).unsqueeze(1)
    twice = once.double() * _scale_of_rows(right, tile)
    out.copy_(twice + out)


def _scale_of_rows(operand: Rounded, tile: int) -> Tensor:
    """The inverse scale of each row in a tile along K."""
    assert operand.inverse_scales is not None
    rows, scales = operand.values.shape[0], operand.inverse_scales[:, tile]
    return scales if len(scales) == rows else scales.repeat_interleave(TILE)[:rows]


def _runs(terms: int, length: int) -> Iterator[slice]:
    return (slice(start, min(start + length, terms)) for start in range(0, terms, length))
