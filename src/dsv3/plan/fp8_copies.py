"""Bytes of the FP8 copies that Transformer Engine 2.20 makes of a matrix, in either direction.

After `inner_tensor_specs` and `get_scale_shape` of its quantisers, whose scales are filled up for
cuBLAS. A product reads its operands along what it sums over: forward and for the input's gradient
that is another direction of the weight, and the weight's gradient reads columns of both.
"""

from typing import NamedTuple

from dsv3.config.precision import Recipe
from dsv3.plan.memory_ops import FP32

FP8_TILE, MX_TILE = 128, 32

CUBLAS_BYTES = 32 * 1024 * 1024 + 1024
"""Room for cuBLAS to work in, on Hopper or newer (`cpp_extensions/gemm.py`)."""
CUBLAS_ROOMS = 1 + 4
"""One for single products, and one for each stream on which grouped ones run."""


class Copy(NamedTuple):
    """One direction of a matrix: codes of a byte each, and its scales."""

    codes: int
    scales: int  # numbers
    scale_bytes: int  # of one of them

    @property
    def size(self) -> int:
        """Bytes of both."""
        return self.codes + self.scales * self.scale_bytes


def copies_of(recipe: Recipe, rows: int, width: int, *, is_weight: bool) -> tuple[Copy, Copy]:
    """The copy by row and the one by column of [rows, width]; of a weight that is [out, in].

    `fp8_current` as on Hopper: later GPUs read one copy in both directions.
    """
    codes = rows * width
    match recipe:
        case "fp8_block" if is_weight:
            down, across = _tiles(rows, FP8_TILE), _tiles(width, FP8_TILE)
            sizes = (down * _filled(across, 4), across * _filled(down, 4))
            return Copy(codes, sizes[0], FP32), Copy(codes, sizes[1], FP32)
        case "fp8_block":
            by_row = _tiles(width, FP8_TILE) * _filled(rows, 4)
            by_column = _tiles(rows, FP8_TILE) * _filled(width, 4)
            return Copy(codes, by_row, FP32), Copy(codes, by_column, FP32)
        case "mxfp8":
            by_row = _filled(rows, 128) * _filled(width // MX_TILE, 4)
            by_column = _filled(rows // MX_TILE, 4) * _filled(width, 128)
            return Copy(codes, by_row, 1), Copy(codes, by_column, 1)
        case "fp8_current":
            return Copy(codes, 1, FP32), Copy(codes, 1, FP32)
    raise AssertionError(f"{recipe=} has no FP8 products")


def _tiles(length: int, tile: int) -> int:
    return -(-length // tile)


def _filled(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
