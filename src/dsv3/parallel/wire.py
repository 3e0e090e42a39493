"""FP8 on the wire: E4M3 codes with one scale for each 1 x 128 tile (report section 3.3.2).

The report dispatches activations in FP8 and combines in BF16: so the tokens on their way to the
experts are rounded, and in the backward pass the gradients on that way. The scales are powers of
two, so that nothing but the mantissa of E4M3 is lost.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3.ops.fp8 import LARGEST_E4M3, TILE

SMALLEST_SCALE = 2.0**-100


def quantise(rows_AD: Tensor) -> tuple[Tensor, Tensor]:
    """Rows to codes, bytes [A, D], and FP32 scales [A, ceil(D / 128)]: value = code * scale.

    A tile's scale is the smallest power of two that keeps its largest magnitude within E4M3. A
    tile with a NaN or an infinity comes back as NaN.
    """
    tiles = _tiles(rows_AD.float())
    largest = tiles.abs().amax(dim=-1)
    # frexp: x = m * 2^e with m in [0.5, 1), exact where a logarithm would round.
    mantissa, exponent = torch.frexp(largest / LARGEST_E4M3)
    exponent = exponent - (mantissa == 0.5).to(exponent.dtype)
    scales = torch.ldexp(torch.ones_like(largest), exponent).clamp(min=SMALLEST_SCALE)
    scales = torch.where(largest.isfinite(), scales, torch.nan)
    codes = (tiles / scales.unsqueeze(-1)).to(torch.float8_e4m3fn).view(torch.uint8)
    return codes.flatten(1)[:, : rows_AD.shape[1]].contiguous(), scales


def dequantise(codes_AD: Tensor, scales: Tensor, *, width: int, dtype: torch.dtype) -> Tensor:
    """The inverse of `quantise`, in `dtype`; exact in BF16 and in FP32."""
    values = codes_AD.view(torch.float8_e4m3fn).float()
    rows = (_tiles(values) * scales.unsqueeze(-1)).flatten(1)[:, :width]
    return rows.to(dtype)


def round_forward(x_TD: Tensor) -> Tensor:
    """What comes of `x_TD` on the wire; the gradient passes unchanged."""
    rounded: Tensor = _Rounded.apply(x_TD, True, False)  # type: ignore[no-untyped-call]
    return rounded


def round_backward(x_TD: Tensor) -> Tensor:
    """`x_TD` itself; its gradient becomes what comes of it on the wire."""
    same: Tensor = _Rounded.apply(x_TD, False, True)  # type: ignore[no-untyped-call]
    return same


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, forward: bool, backward: bool) -> Tensor:
        ctx.backward_too = backward
        return _round_trip(x_TD) if forward else x_TD.view_as(x_TD)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _round_trip(gradient) if ctx.backward_too else gradient, None, None


def _round_trip(x_TD: Tensor) -> Tensor:
    return dequantise(*quantise(x_TD), width=x_TD.shape[1], dtype=x_TD.dtype)


def _tiles(rows_AD: Tensor) -> Tensor:
    """[A, D] -> [A, ceil(D / 128), 128], the last tile filled up with zeros."""
    missing = -rows_AD.shape[1] % TILE
    padded = F.pad(rows_AD, (0, missing)) if missing else rows_AD  # nothing to add is a copy too
    return padded.view(padded.shape[0], padded.shape[1] // TILE, TILE)
