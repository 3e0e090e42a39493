"""Transformer Engine's CUDA quantiser against ours, bit for bit: codes and stored scales."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv3.ops.fp8 import BLOCKS, COLUMNS, ROWS, Shape, dequantise, quantise

pytestmark = pytest.mark.gpu

SHAPES = [(128, 128), (256, 384), (144, 176), (16, 1040), (272, 48), (8, 16), (1024, 7168)]
MAGNITUDES = [1e-38, 1e-30, 1e-10, 1e-3, 1.0, 1e3, 1e10, 1e30, 3e38]


def ours(x: Tensor, tile: Shape, power_of_two: bool) -> tuple[Tensor, Tensor]:
    """Codes as bytes and inverse scales, from the CPU."""
    codes, inverse = quantise(x.cpu(), tile, power_of_two=power_of_two)
    return codes.view(torch.uint8), inverse


def compare(te: Any, x: Tensor, *, blocks: bool, power_of_two: bool) -> None:
    quantiser = te.Float8BlockQuantizer(
        te.DType.kFloat8E4M3,
        rowwise=True,
        columnwise=True,
        force_pow_2_scales=power_of_two,
        block_scaling_dim=2 if blocks else 1,
    )
    made = quantiser(x)
    rows, columns = x.shape
    assert made._is_2D_scaled == blocks
    codes, inverse = ours(x, BLOCKS if blocks else ROWS, power_of_two)
    assert torch.equal(made._rowwise_data.cpu().view(torch.uint8), codes)
    stored = made._rowwise_scale_inv.cpu()
    # Scales of rows lie transposed, both kinds filled up to multiples of 4.
    stored = stored[:, : inverse.shape[1]] if blocks else stored[:, :rows].t()
    assert torch.equal(stored, inverse)

    codes, inverse = ours(x, BLOCKS if blocks else COLUMNS, power_of_two)
    assert torch.equal(made._columnwise_data.cpu().view(torch.uint8), codes.t())
    stored = made._columnwise_scale_inv.cpu()
    stored = stored[:, : inverse.shape[0]].t() if blocks else stored[:, :columns]
    assert torch.equal(stored, inverse)


@pytest.mark.parametrize("power_of_two", [True, False], ids=["power_of_two", "fp32"])
@pytest.mark.parametrize("blocks", [False, True], ids=["1x128", "128x128"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_tensors(
    te: Any, gpu: torch.device, shape: Shape, dtype: torch.dtype, blocks: bool, power_of_two: bool
) -> None:
    generator = torch.Generator().manual_seed(math.prod(shape))
    for magnitude in MAGNITUDES:
        spread = torch.randn(shape, generator=generator).mul(2).exp()  # many orders in one tile
        x = torch.randn(shape, generator=generator) * spread * magnitude
        x = x.clamp(-3e38, 3e38).to(dtype)
        compare(te, x.to(gpu), blocks=blocks, power_of_two=power_of_two)


@pytest.mark.parametrize("power_of_two", [True, False], ids=["power_of_two", "fp32"])
@pytest.mark.parametrize("blocks", [False, True], ids=["1x128", "128x128"])
def test_every_bf16_as_the_largest_of_its_tile(
    te: Any, gpu: torch.device, blocks: bool, power_of_two: bool
) -> None:
    """All finite BF16 magnitudes, subnormal ones and zero too, set a scale."""
    bits = torch.arange(0x7F80, dtype=torch.int32).to(torch.int16)
    largest = bits.view(torch.bfloat16)
    side = 128 if blocks else 1
    for part in largest.split(64 if blocks else 4096):
        x = torch.zeros(len(part) * side, 128, dtype=torch.bfloat16)
        x[::side, 0] = part
        x[::side, 1:] = (part.unsqueeze(1) * torch.linspace(-1, 1, 127)).to(torch.bfloat16)
        compare(te, x.to(gpu), blocks=blocks, power_of_two=power_of_two)


@pytest.mark.parametrize("power_of_two", [True, False], ids=["power_of_two", "fp32"])
def test_tiles_with_infinities(te: Any, gpu: torch.device, power_of_two: bool) -> None:
    x = torch.randn(128, 256).to(torch.bfloat16)
    x[3, 5], x[100, 200] = torch.inf, -torch.inf
    compare(te, x.to(gpu), blocks=False, power_of_two=power_of_two)


def test_values_after_the_way_back(te: Any, gpu: torch.device) -> None:
    x = torch.randn(256, 384, dtype=torch.bfloat16)
    quantiser = te.Float8BlockQuantizer(
        te.DType.kFloat8E4M3, rowwise=True, columnwise=True, block_scaling_dim=1
    )
    back = quantiser(x.to(gpu)).dequantize().cpu()
    expected = dequantise(quantise(x, ROWS, power_of_two=True), ROWS, torch.bfloat16)
    assert torch.equal(back, expected)
