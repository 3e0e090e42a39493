"""The FP8 quantiser: E4M3 codes with one FP32 scale for each tile (report section 3.3.2).

Bit for bit what Transformer Engine 2.20's `Float8BlockScaling` makes of a tensor, in plain torch:

    amax = max |x| over the tile, in FP32, NaN left out
    scale = RN(448 / amax); 1 if amax is 0 or infinite; the largest number of x's type beyond that
    scale = 2^floor(log2 scale), with power-of-two scales
    code = E4M3(RN(x * scale)), nearest even, cut to +-448
    stored beside the codes: RN(1 / scale)

Tiles at the edge of a tensor are as large as what is left: the zeros that fill them up in memory
change nothing.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3.ops.gemm_log import Range

LARGEST_E4M3 = 448.0
TILE = 128
EXPONENT_BITS = 0x7F800000
ROUNDING = 1.5 * 2.0**20  # x 2^e: adding it leaves a number of [2^e, 2^(e+1)) the mantissa of E4M3
SMALLEST_NORMAL_E4M3 = 2.0**-6
LARGEST_ROUNDED = 464.0  # as far as numbers round to 448: FP32 scales leave some a bit above it
LARGEST_LOST = 2.0**-10  # half of the smallest step, a tie that goes to zero

Shape = tuple[int, int]
ROWS: Shape = (1, TILE)
COLUMNS: Shape = (TILE, 1)
BLOCKS: Shape = (TILE, TILE)


class Codes(NamedTuple):
    """`codes` [..., M, K] of float8_e4m3fn, and FP32 [..., ceil(M / r), ceil(K / c)].

    Of a tile of r x c, value = code * inverse scale.
    """

    codes: Tensor
    inverse_scales: Tensor


class Rounded(NamedTuple):
    """A tensor as its FP8 copy has it, in FP32, [..., M, K].

    With power-of-two scales `values` are the values themselves, which FP32 holds exactly, and
    `inverse_scales` is None; with FP32 scales `values` are those of the codes.
    """

    values: Tensor
    inverse_scales: Tensor | None


def quantise(x: Tensor, tile: Shape, *, power_of_two: bool) -> Codes:
    """Codes and inverse scales of x [..., M, K] in tiles of `tile`."""
    tiles, scales = _scaled(x, tile, power_of_two=power_of_two)
    codes = tiles.clamp_(-LARGEST_E4M3, LARGEST_E4M3).to(torch.float8_e4m3fn)
    return Codes(_untiled(codes, x.shape), 1.0 / scales)


def dequantise(quantised: Codes, tile: Shape, dtype: torch.dtype) -> Tensor:
    """The values, computed in FP32 and rounded to `dtype`."""
    codes, inverse = quantised
    tiles = _tiles(codes.float(), tile)
    return _untiled(tiles * _per_tile(inverse), codes.shape).to(dtype)


def round_to_fp8(x: Tensor, tile: Shape, *, power_of_two: bool) -> Rounded:
    """What `quantise` makes of x [..., M, K], without going through 8 bits.

    The bits of the values are the same; torch's conversions from E4M3 are slow on a CPU.
    """
    tiles, scales = _scaled(x, tile, power_of_two=power_of_two)
    tiles = _to_e4m3(tiles.clamp_(-LARGEST_E4M3, LARGEST_E4M3))
    inverse = 1.0 / scales
    if not power_of_two:
        return Rounded(_untiled(tiles, x.shape), inverse)
    return Rounded(_untiled(tiles.mul_(_per_tile(inverse)), x.shape), None)


def range_of(x: Tensor, tile: Shape, power_of_two: bool) -> Range:
    """How x fits in tiles of `tile`; tiles of zeros have no say, and without others all is well."""
    tiles, scales = _scaled(x, tile, power_of_two=power_of_two)
    scales = scales[tiles.abs().amax(dim=(-3, -1)) > 0]
    if scales.numel() == 0:
        return Range(0.0, 1.0, 1.0, 0.0, 0.0)
    scaled = _untiled(tiles, x.shape).abs()
    return Range(
        amax=float(x.abs().amax()),
        smallest_scale=float(scales.amin()),
        largest_scale=float(scales.amax()),
        overflow=float((scaled > LARGEST_ROUNDED).float().mean()),
        underflow=float(((x != 0) & (scaled <= LARGEST_LOST)).float().mean()),
    )


def scale_of(amax: Tensor, dtype: torch.dtype, *, power_of_two: bool) -> Tensor:
    """The scale for a largest magnitude (FP32, no NaN) in a tensor of `dtype`."""
    # NOTE footgun: 448.0 / amax is amax.reciprocal() * 448 in torch and rounds twice.
    scale = torch.div(torch.full_like(amax, LARGEST_E4M3), amax)
    scale = torch.where(scale.isinf(), torch.finfo(dtype).max, scale)
    if power_of_two:
        scale = (scale.view(torch.int32) & EXPONENT_BITS).view(torch.float32)
    return torch.where((amax == 0) | amax.isinf(), 1.0, scale)


def _scaled(x: Tensor, tile: Shape, *, power_of_two: bool) -> tuple[Tensor, Tensor]:
    """x times its scales in tiles, FP32 [..., M / r, r, K / c, c], and the scales."""
    tiles = _tiles(x.float(), tile)
    amax = tiles.abs().amax(dim=(-3, -1))
    if bool(amax.isnan().any()):
        amax = tiles.abs().nan_to_num(nan=0.0, posinf=torch.inf).amax(dim=(-3, -1))
    scales = scale_of(amax, x.dtype, power_of_two=power_of_two)
    return tiles * _per_tile(scales), scales


def _to_e4m3(x: Tensor) -> Tensor:
    """FP32 of at most 448 rounded to the nearest E4M3, ties to even; in FP32.

    Below 2^-6 E4M3 has steps of 2^-9.
    """
    power = (x.view(torch.int32) & EXPONENT_BITS).view(torch.float32)
    shift = power.clamp_(min=SMALLEST_NORMAL_E4M3).mul_(ROUNDING)
    return x.add_(shift).sub_(shift)


def _tiles(x: Tensor, tile: Shape) -> Tensor:
    """[..., M, K] to [..., M / r, r, K / c, c], filled up with zeros."""
    (rows, columns), (r, c) = x.shape[-2:], tile
    if rows % r or columns % c:
        x = F.pad(x, (0, -columns % c, 0, -rows % r))
    tiles: Tensor = x.unflatten(-1, (-1, c)).unflatten(-3, (-1, r))
    return tiles


def _untiled(tiles: Tensor, shape: torch.Size) -> Tensor:
    whole: Tensor = tiles.flatten(-2).flatten(-3, -2)[..., : shape[-2], : shape[-1]]
    return whole


def _per_tile(scales: Tensor) -> Tensor:
    """[..., M / r, K / c] to [..., M / r, 1, K / c, 1]."""
    return scales.unsqueeze(-2).unsqueeze(-1)
