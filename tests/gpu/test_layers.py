"""Layers of Transformer Engine against those of torch and of the emulation, on the GPU."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsv3.model.backends import Backend
from dsv3.ops.gemm_log import recording
from dsv3.train.build import choose_backend
from gpu.conftest import ARMS, configuration

pytestmark = pytest.mark.gpu

D, F_WIDTH, E = 256, 128, 4
# BF16 against BF16 in another order of sums: a unit of 2^-8 in each of two products.
BF16_NORM = 2.0**-7
# FP8 of hardware and emulation have the same operands; their sums differ by 2^-12, and now and then
# a BF16 result falls to the other side and takes an FP8 step of 2^-4 with it in the next product.
FP8_NORM = 2.0**-6


def experts(arm: str, gpu: torch.device) -> tuple[nn.Module, Backend]:
    backend = choose_backend(configuration(arm).precision)
    layer = backend.experts(E, D, F_WIDTH).to(device=gpu, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    backend.prepare(nn.ModuleDict({"experts": layer}))
    return layer, backend


def run(arm: str, real: list[int], gpu: torch.device) -> list[Tensor]:
    """Output of the real rows and every gradient; rows filled up as the arm wants them."""
    layer, backend = experts(arm, gpu)
    multiple = backend.row_multiple(layer)
    counts = [-(-count // multiple) * multiple for count in real]
    generator = torch.Generator().manual_seed(4)
    x, dy = (torch.randn(sum(real), D, generator=generator) for _ in range(2))
    w = torch.rand(sum(real), generator=generator) + 0.1
    keep = torch.cat(
        [torch.arange(c) < r for c, r in zip(counts, real, strict=True)]
        or [torch.zeros(0, dtype=torch.bool)]
    )
    rows = torch.full((sum(counts) + 32, D), 1e3)
    upstream, weights = rows.clone(), torch.zeros(len(rows))
    at = keep.nonzero().flatten()
    rows[at], upstream[at], weights[at] = x, dy, w
    leaves = [rows.to(gpu, torch.bfloat16).requires_grad_(), weights.to(gpu).requires_grad_()]
    out = layer(*leaves, torch.tensor(counts, device=gpu))
    used = sum(counts)
    loss = (out[:used].float() * upstream[:used].to(gpu)).sum()
    grads = torch.autograd.grad(loss, [*leaves, *layer.parameters()])
    found = [out[at], grads[0][at], grads[1][at], *grads[2:]]
    return [tensor.detach().float() for tensor in found]


def close(found: list[Tensor], wanted: list[Tensor], bound: float) -> None:
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.isfinite().all()
        assert (mine - theirs).norm() <= bound * theirs.norm() + 1e-6


@pytest.mark.parametrize("real", [[64, 37, 5, 150], [0, 90, 16, 33]], ids=str)
def test_experts_agree(te: Any, gpu: torch.device, real: list[int]) -> None:
    close(run("te bf16", real, gpu), run("torch bf16", real, gpu), BF16_NORM)
    for scales in ("", ", fp32 scales"):
        found, wanted = (run(f"{kind} fp8{scales}", real, gpu) for kind in ("te", "emulated"))
        close(found, wanted, FP8_NORM)


@pytest.mark.parametrize("arm", ["te bf16", "te fp8", "te fp8, fp32 scales"])
@pytest.mark.parametrize(
    "real", [[0, 64, 32, 16], [64, 32, 16, 0], [48, 0, 0, 16], [0, 0, 0, 64], [0, 0, 0, 0]], ids=str
)
def test_experts_without_rows_have_gradients_of_zero(
    te: Any, gpu: torch.device, arm: str, real: list[int]
) -> None:
    *_, gate_up, down = run(arm, real, gpu)
    for gradient in (gate_up, down):
        assert gradient.isfinite().all()
        assert gradient.flatten(1).any(dim=1).tolist() == [count > 0 for count in real]


@pytest.mark.parametrize("arm", list(ARMS))
def test_a_norm_agrees_in_every_arm(te: Any, gpu: torch.device, arm: str) -> None:
    results = []
    for name in (arm, "torch bf16"):
        backend = choose_backend(configuration(name).precision)
        norm = backend.rms_norm(D, 1e-6).to(device=gpu, dtype=torch.bfloat16)
        generator = torch.Generator().manual_seed(9)
        nn.init.ones_(norm.weight)
        x = torch.randn(64, D, generator=generator).to(gpu, torch.bfloat16).requires_grad_()
        y = norm(x)
        y.backward(torch.randn(y.shape, generator=generator).to(gpu, torch.bfloat16))
        results.append([t.detach().float() for t in (y, x.grad, norm.weight.grad)])
    close(results[0], results[1], BF16_NORM)


@pytest.mark.parametrize("length", [128, 384])
def test_attention_of_the_reports_heads_agrees(te: Any, gpu: torch.device, length: int) -> None:
    results = []
    for name in ("te bf16", "torch bf16"):
        backend = choose_backend(configuration(name).precision)
        generator = torch.Generator().manual_seed(6)
        qkv = [
            torch.randn(2, 4, length, width, generator=generator)
            .to(gpu, torch.bfloat16)
            .requires_grad_()
            for width in (192, 192, 128)
        ]
        out = backend.attention(*qkv, scale=192**-0.5)
        out.backward(torch.randn(out.shape, generator=generator).to(gpu, torch.bfloat16))
        results.append([t.detach().float() for t in (out, *(x.grad for x in qkv))])
    close(results[0], results[1], 2 * BF16_NORM)  # probabilities are rounded too


def test_the_log_says_which_layer_and_what(te: Any, gpu: torch.device) -> None:
    with recording() as log:
        run("te fp8", [64, 32, 16, 16], gpu)
    assert {g.layer for g in log.calls} == {"experts.gate_up_proj", "experts.down_proj"}
    assert {g.kind for g in log.calls} == {"fprop", "dgrad", "wgrad"}
    assert {g.left.split()[0] for g in log.calls} == {"e4m3"}
    assert {g.output for g in log.calls if g.kind == "wgrad"} == {"fp32"}
