"""The FP8 quantiser against plain loops written from the formulas: every bit."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsv3.ops.fp8 import BLOCKS, COLUMNS, ROWS, TILE, Shape, dequantise, quantise, round_to_fp8
from numerics import fp8_oracle as oracle

LARGEST = {torch.bfloat16: oracle.BF16_MAX, torch.float32: oracle.FP32_MAX}
EVERY_BF16 = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
# Largest magnitudes beside which every value is quantised: where scales overflow, are subnormal or
# powers of two themselves, one step beside those, and the ends of BF16.
EDGES = (
    *(float(EVERY_BF16[bits]) for bits in (2**15 + 1, 2**15 + 2, 2**15 + 127, 2**15 + 128)),
    *(2.0**-126 * 448, 2.0**-118, 2.0**-119, 448 * 2.0**-10, 450 * 2.0**-10),
    *(1.0, 1.75, 1.7578125, 3.5, 447.0, 448.0, 450.0, 2.0**100, 2.0**127, oracle.BF16_MAX),
)


def assert_same(x: Tensor, tile: Shape, *, power_of_two: bool) -> None:
    """Codes and inverse scales equal the oracle's in every bit, and so do the rounded values."""
    found = quantise(x, tile, power_of_two=power_of_two)
    codes, inverse = oracle.quantise(
        x.float().tolist(), tile, largest=LARGEST[x.dtype], power_of_two=power_of_two
    )
    ours = found.codes.contiguous().view(torch.uint8)
    # The sign of a NaN means nothing.
    ours = torch.where(ours == 0xFF, torch.tensor(oracle.NAN, dtype=torch.uint8), ours)
    assert torch.equal(ours, torch.tensor(codes, dtype=torch.uint8))
    wanted = torch.from_numpy(np.array(inverse, dtype=np.float32))
    assert torch.equal(found.inverse_scales.view(torch.int32), wanted.view(torch.int32))
    assert_rounded_equals_codes(x, tile, power_of_two=power_of_two)


def assert_rounded_equals_codes(x: Tensor, tile: Shape, *, power_of_two: bool) -> None:
    found = quantise(x, tile, power_of_two=power_of_two)
    rounded = round_to_fp8(x, tile, power_of_two=power_of_two)
    if power_of_two:
        assert rounded.inverse_scales is None
        wanted = dequantise(found, tile, torch.float32)
    else:
        assert rounded.inverse_scales is not None
        assert torch.equal(rounded.inverse_scales, found.inverse_scales)
        wanted = found.codes.float()
    assert torch.equal(rounded.values.nan_to_num(nan=7e37), wanted.nan_to_num(nan=7e37))


@pytest.mark.parametrize("power_of_two", [True, False])
def test_every_bf16_value_beside_every_edge(power_of_two: bool) -> None:
    """A row for each edge: the edge and all values that are not larger, in tiles of 128."""
    magnitudes = EVERY_BF16.float().abs()
    for edge in EDGES:
        values = EVERY_BF16[(magnitudes <= edge) | magnitudes.isnan()]
        others = values[: len(values) // (TILE - 1) * (TILE - 1)].view(-1, TILE - 1)
        others = torch.cat((others, values[-(TILE - 1) :].unsqueeze(0)))
        tiles = torch.cat((torch.full((len(others), 1), edge, dtype=values.dtype), others), dim=1)
        assert float(tiles[0, 0]) == pytest.approx(edge, rel=2**-8)
        assert_same_tiles(tiles, power_of_two=power_of_two)


def assert_same_tiles(tiles: Tensor, *, power_of_two: bool) -> None:
    """Rows that are whole tiles with the same largest magnitude: the oracle's scale once."""
    found = quantise(tiles, ROWS, power_of_two=power_of_two)
    first = tiles[0].float().tolist()
    scale = oracle.scale_of(first, largest=LARGEST[tiles.dtype], power_of_two=power_of_two)
    assert torch.equal(
        found.inverse_scales, torch.full_like(found.inverse_scales, float(np.float32(1) / scale))
    )
    known: dict[float, int] = {}
    for value in set(tiles.float().flatten().tolist()):
        known[value] = oracle.code(value, scale)
    wanted = [
        (oracle.NAN if math.isnan(value) else known[value]) & oracle.NAN
        for value in tiles.float().flatten().tolist()
    ]
    ours = found.codes.contiguous().view(torch.uint8).flatten() & oracle.NAN
    assert torch.equal(ours, torch.tensor(wanted, dtype=torch.uint8))
    negative = found.codes.float().signbit() == tiles.float().signbit()
    assert bool((negative | tiles.isnan()).all())
    assert_rounded_equals_codes(tiles, ROWS, power_of_two=power_of_two)


@pytest.mark.parametrize("power_of_two", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_random_tiles(dtype: torch.dtype, power_of_two: bool) -> None:
    """2,500 tiles of each kind, 10,000 in all, of magnitudes from 1e-38 to 1e30."""
    generator = torch.Generator().manual_seed(8)
    size = torch.rand(2500, 1, generator=generator) * 157 - 87
    spread = torch.randn(2500, TILE, generator=generator)
    x = (torch.randn(2500, TILE, generator=generator) * torch.exp(size + spread)).to(dtype)
    assert_same(x, ROWS, power_of_two=power_of_two)


numbers = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -0.0, 448.0, 2.0**-149, 2.0**-127, 3e38, math.inf, math.nan]),
)


@settings(max_examples=300, deadline=None)
@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    tile=st.sampled_from([ROWS, COLUMNS, BLOCKS]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    power_of_two=st.booleans(),
    seed=st.integers(0, 2**16),
    special=st.lists(numbers, max_size=6),
)
def test_any_shape_in_any_direction(
    rows: int,
    columns: int,
    tile: Shape,
    dtype: torch.dtype,
    power_of_two: bool,
    seed: int,
    special: list[float],
) -> None:
    rows = min(rows, 6000 // columns + 1)  # the oracle is a loop
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    where = torch.randint(x.numel(), (len(special),), generator=generator)
    x.view(-1)[where] = torch.tensor(special, dtype=torch.float32)
    assert_same(x.to(dtype), tile, power_of_two=power_of_two)


def test_a_batch_of_matrices_is_quantised_as_each_of_them() -> None:
    x = torch.randn(3, 150, 200)
    together = quantise(x, BLOCKS, power_of_two=True)
    for index, each in enumerate(x):
        alone = quantise(each, BLOCKS, power_of_two=True)
        assert torch.equal(together.codes[index].float(), alone.codes.float())
        assert torch.equal(together.inverse_scales[index], alone.inverse_scales)


def test_columns_are_the_rows_of_the_transposed() -> None:
    x = torch.randn(300, 70)
    down, across = quantise(x, COLUMNS, power_of_two=True), quantise(x.t(), ROWS, power_of_two=True)
    assert torch.equal(down.codes.float(), across.codes.float().t())
    assert torch.equal(down.inverse_scales, across.inverse_scales.t())
