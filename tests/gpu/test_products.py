"""FP8 products of the hardware against FP64 products of the same FP8 operands."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsv3.model.backends.te import TransformerEngineBackend
from dsv3.ops.fp8 import BLOCKS, COLUMNS, ROWS, Shape, dequantise, quantise
from gpu.conftest import precision

pytestmark = pytest.mark.gpu

# Within 128 terms a Hopper tensor core keeps about 14 bits of its running sum, aligned to the
# largest term: an error below 2^-13 of the sum of magnitudes, doubled for its truncation. Across
# tiles FP32 adds 2^-24 each time. To be tightened by what is measured.
OF_SUM = 2.0**-12
OF_BF16 = 2.0**-8  # a result rounded to 8 bits, by one unit for the error before


def exact(x: Tensor, tile: Shape, scales: str) -> Tensor:
    """What FP8 makes of a tensor, FP64."""
    quantised = quantise(x, tile, power_of_two=scales == "power_of_two")
    return dequantise(quantised, tile, torch.float32).double()


def layer(scales: str, width: int, out: int, gpu: torch.device) -> nn.Module:
    backend = TransformerEngineBackend(precision("fp8_block", f"precision.scales={scales}"))
    made = backend.linear(width, out).to(device=gpu, dtype=torch.bfloat16)
    nn.init.normal_(made.weight, std=0.02)
    backend.prepare(nn.ModuleDict({"layer": made}))
    return made


def within(found: Tensor, left: Tensor, right: Tensor, *, rounded: bool) -> None:
    """Elementwise: |found - left right^T| <= 2^-12 |left| |right|^T, and BF16's own rounding."""
    expected = left @ right.t()
    bound = OF_SUM * (left.abs() @ right.abs().t()) + 1e-30
    if rounded:
        bound = bound + OF_BF16 * expected.abs()
    assert ((found.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("scales", ["power_of_two", "fp32"])
@pytest.mark.parametrize("shape", [(256, 512, 384), (48, 4096, 128), (128, 7168, 576)], ids=str)
def test_the_three_products_of_a_linear_layer(
    te: Any, gpu: torch.device, shape: tuple[int, int, int], scales: str
) -> None:
    rows, width, out = shape
    made = layer(scales, width, out, gpu)
    x = torch.randn(rows, width, device=gpu, dtype=torch.bfloat16).requires_grad_()
    y = made(x)
    dy = torch.randn_like(y)
    y.backward(dy)
    weight = exact(made.weight.detach(), BLOCKS, scales)
    within(y.detach(), exact(x.detach(), ROWS, scales), weight, rounded=True)
    within(x.grad, exact(dy, ROWS, scales), weight.t(), rounded=True)
    assert made.weight.grad.dtype == torch.float32
    left, right = exact(dy, COLUMNS, scales), exact(x.detach(), COLUMNS, scales)
    within(made.weight.grad, left.t(), right.t(), rounded=False)


def test_scales_are_what_was_asked_for(te: Any, gpu: torch.device) -> None:
    """Of the operands themselves and not of a recipe's printed form."""
    module = __import__("transformer_engine.pytorch.module.linear", fromlist=["general_gemm"])
    for scales in ("power_of_two", "fp32"):
        made, wrapped = layer(scales, 256, 128, gpu), module.general_gemm
        look, seen = _looking(wrapped)
        module.general_gemm = look
        try:
            with torch.no_grad():
                made(torch.randn(128, 256, device=gpu, dtype=torch.bfloat16))
        finally:
            module.general_gemm = wrapped
        mantissas = torch.cat([s.flatten() for s in seen]).view(torch.int32) & 0x7FFFFF
        assert bool((mantissas == 0).all()) == (scales == "power_of_two")


def _looking(gemm: Any) -> tuple[Any, list[Tensor]]:
    """The product, and the scales of what it is given."""
    seen: list[Tensor] = []

    def look(a: Any, b: Any, *rest: Any, **named: Any) -> Any:
        seen.extend((a._rowwise_scale_inv[:1, :1], b._rowwise_scale_inv[:1, :128]))
        return gemm(a, b, *rest, **named)

    return look, seen
