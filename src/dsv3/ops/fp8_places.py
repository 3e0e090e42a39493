"""Rows of experts set apart, so that no FP8 tile holds rows of two of them.

Each expert's rows begin at a multiple of 128 and have zeros after them; zeros that fill up a tile
change neither its scale nor a sum.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dsv3.ops.fp8 import TILE, Rounded, Shape


class Places(NamedTuple):
    """Where the rows of each expert lie when they are set apart, P rows in all."""

    counts: tuple[int, ...]
    begins: tuple[int, ...]
    rows: int
    row_R: Tensor  # place of each row, int64; of those that an expert has

    @classmethod
    def of(cls, rows_per_expert_e: Tensor) -> "Places":
        """Each expert begins at the next multiple of 128 after the one before."""
        ends_e = ((rows_per_expert_e + TILE - 1) // TILE * TILE).cumsum(0)
        begins_e = ends_e - (rows_per_expert_e + TILE - 1) // TILE * TILE
        counts, begins = rows_per_expert_e.tolist(), begins_e.tolist()
        compact_e = rows_per_expert_e.cumsum(0) - rows_per_expert_e
        shift_R = (begins_e - compact_e).repeat_interleave(rows_per_expert_e)
        row_R = torch.arange(len(shift_R), device=shift_R.device) + shift_R
        return cls(tuple(counts), tuple(begins), int(ends_e[-1]), row_R)

    def apart(self, x_R: Tensor) -> Tensor:
        """[R, ...] to [P, ...], zeros between."""
        x_P = x_R.new_zeros(self.rows, *x_R.shape[1:])
        return x_P.index_copy_(0, self.row_R, x_R[: len(self.row_R)])

    def of_experts(self, operand: Rounded, tile: Shape) -> Iterator[Rounded]:
        """Each expert's rows of an operand [P, K]."""
        inverse = operand.inverse_scales
        for begin, count in zip(self.begins, self.counts, strict=True):
            first, last = begin // tile[0], (begin + count + tile[0] - 1) // tile[0]
            scales = None if inverse is None else inverse[first:last]
            yield Rounded(operand.values[begin : begin + count], scales)
