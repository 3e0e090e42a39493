"""FP8 on the wire against a quantiser that looks every value up in the list of E4M3 numbers."""

import math

import pytest
import torch

from dsv3.parallel.dispatch import LocalDispatcher
from dsv3.parallel.wire import dequantise, quantise, round_backward, round_forward

# OCP FP8: sign, 4 bits of exponent with bias 7, 3 of mantissa; S.1111.111 is NaN, no infinity.
E4M3 = sorted(
    {
        mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        for exponent in range(16)
        for mantissa in range(8)
        if (exponent, mantissa) != (15, 7)
    }
)


def nearest(value: float) -> list[float]:
    """The one or, at a tie, the two E4M3 numbers that are nearest."""
    distance = min(abs(abs(value) - code) for code in E4M3)
    return [math.copysign(c, value) for c in E4M3 if abs(abs(value) - c) == distance]


def test_the_largest_code_is_448() -> None:
    assert (len(E4M3), E4M3[-1]) == (127, 448.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [128, 300, 5])
def test_a_tile_has_the_smallest_power_of_two_that_fits_and_the_nearest_codes(
    dtype: torch.dtype, width: int
) -> None:
    generator = torch.Generator().manual_seed(width)
    magnitudes = torch.tensor([1e-12, 1e-3, 1.0, 500.0, 3e8]).unsqueeze(1)
    x = (torch.randn(5, width, generator=generator) * magnitudes).to(dtype)
    codes, scales = quantise(x)
    assert codes.shape == x.shape and codes.dtype == torch.uint8
    assert scales.shape == (5, -(-width // 128)) and scales.dtype == torch.float32
    back = dequantise(codes, scales, width=width, dtype=dtype)
    assert back.dtype == dtype
    for row in range(5):
        for first in range(0, width, 128):
            tile = x[row, first : first + 128].double()
            largest = float(tile.abs().max())
            scale = float(scales[row, first // 128])
            assert scale == 2.0 ** math.ceil(math.log2(largest / 448))
            for value, found in zip(tile.tolist(), back[row, first : first + 128], strict=True):
                assert float(found) / scale in nearest(value / scale)


def test_a_scale_is_exact_where_the_largest_is_a_power_of_two_times_448() -> None:
    for exponent in (-20, -1, 0, 1, 20):
        _, scales = quantise(torch.tensor([[448.0 * 2.0**exponent, 1e-9]]))
        assert float(scales) == 2.0**exponent


def test_zero_nan_and_infinity_come_through() -> None:
    x = torch.zeros(4, 256)
    x[1, 3], x[2, 200], x[3, 0] = math.nan, math.inf, -1.0
    back = dequantise(*quantise(x), width=256, dtype=x.dtype)
    assert torch.equal(back[0], x[0]) and torch.equal(back[3], x[3])
    assert back[1, :128].isnan().all() and torch.equal(back[1, 128:], x[1, 128:])
    assert back[2, 128:].isnan().all(), "an infinity stays something that is not finite"


def test_no_rows_are_no_rows() -> None:
    codes, scales = quantise(torch.zeros(0, 200))
    assert (codes.shape, scales.shape) == ((0, 200), (0, 2))
    assert dequantise(codes, scales, width=200, dtype=torch.bfloat16).shape == (0, 200)


def test_tokens_are_rounded_forwards_and_gradients_backwards() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3, 130, generator=generator, requires_grad=True)
    probe = torch.randn(3, 130, generator=generator)
    rounded = dequantise(*quantise(x.detach()), width=130, dtype=x.dtype)
    rounded_probe = dequantise(*quantise(probe), width=130, dtype=x.dtype)
    assert not torch.equal(rounded, x) and not torch.equal(rounded_probe, probe)
    for function, out, gradient in (
        (round_forward, rounded, probe),
        (round_backward, x, rounded_probe),
    ):
        found = function(x)
        [back] = torch.autograd.grad(found, x, probe)
        assert torch.equal(found, out)
        assert torch.equal(back, gradient)


def test_one_process_rounds_as_the_wire_does() -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(6, 130, generator=generator, requires_grad=True)
    ids = torch.tensor([[0, 2], [1, 2], [2, 0], [1, 0], [2, 1], [0, 1]])
    dispatcher = LocalDispatcher(3, fp8=True)
    rows, _, _, handle = dispatcher.dispatch(x, ids, torch.rand(6, 2), row_multiple=1)
    rounded = round_forward(x.detach())
    assert torch.equal(rows[handle.row_TK[:, 0]], rounded)
    probe = torch.randn(6, 130, generator=generator)
    [back] = torch.autograd.grad(dispatcher.combine(rows, handle), rows, probe)
    expected = dequantise(*quantise(probe), width=130, dtype=x.dtype)
    assert torch.equal(back[handle.row_TK[:, 1]], expected)
