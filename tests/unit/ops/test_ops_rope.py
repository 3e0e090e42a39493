"""Rotary embedding against complex multiplication, YaRN against its definition."""

import math

import pytest
import torch

from dsv3.ops.rope import (
    rotary_frequencies,
    rotate_pairs,
    rotation_table,
    yarn_frequencies,
    yarn_temperature,
)

ORIGINAL, FACTOR = 4096, 40.0


def yarn(width: int = 64) -> torch.Tensor:
    return yarn_frequencies(
        width, 1e4, factor=FACTOR, original_length=ORIGINAL, beta_fast=32.0, beta_slow=1.0
    )


def test_rotation_is_complex_multiplication_of_adjacent_pairs() -> None:
    x = torch.randn(2, 3, 11, 8, dtype=torch.float64)
    rotation = rotation_table(rotary_frequencies(8, 1e4), 11).double()
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    turned = pairs * torch.complex(rotation[0], rotation[1])
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    # One multiplication and addition per number in FP64.
    torch.testing.assert_close(rotate_pairs(x, rotation), expected, rtol=1e-14, atol=1e-14)


def test_products_depend_on_the_distance_only() -> None:
    q, k = torch.randn(2, 16, dtype=torch.float64)
    rotation = rotation_table(rotary_frequencies(16, 1e4).double(), 40)
    both = rotate_pairs(torch.stack((q, k)).unsqueeze(1).expand(2, 40, 16), rotation.double())
    products = both[0] @ both[1].t()
    for distance in (0, 1, 7):
        diagonal = products.diagonal(distance)
        # Positions times frequencies are rounded in FP32.
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)


def test_result_keeps_its_type_and_is_computed_in_fp32() -> None:
    rotation = rotation_table(rotary_frequencies(8, 1e4), 5)
    x = torch.randn(2, 5, 8).bfloat16()
    turned = rotate_pairs(x, rotation)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate_pairs(x.float(), rotation).bfloat16())


def test_yarn_keeps_fast_pairs_and_slows_slow_ones() -> None:
    plain = rotary_frequencies(64, 1e4)
    turns = plain * ORIGINAL / (2 * math.pi)
    ratio = yarn() / plain
    assert torch.equal(ratio[turns > 32], torch.ones_like(ratio[turns > 32]))
    slow = turns < 0.8  # the released bounds are rounded outwards to whole pairs
    torch.testing.assert_close(ratio[slow], torch.full_like(ratio[slow], 1 / FACTOR))
    assert (ratio.diff() < 1e-6).all()
    between = (ratio < 0.999) & (ratio > 1.001 / FACTOR)
    assert between.sum() > 4


@pytest.mark.parametrize(("factor", "mscale", "expected"), [(40, 1.0, 1.36888), (1, 1.0, 1.0)])
def test_temperature(factor: float, mscale: float, expected: float) -> None:
    """The report: sqrt(t) = 0.1 ln s + 1 = 1.3689 at s = 40."""
    assert yarn_temperature(factor, mscale) == pytest.approx(expected, abs=1e-5)
