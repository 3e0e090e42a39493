"""Causal attention against the definition, on both of its paths."""

import pytest
import torch

from dsv3.ops import attention
from dsv3.ops.attention import causal_attention


def by_definition(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Query by query: only keys up to its own position exist."""
    out = []
    for position in range(q.shape[2]):
        scores = scale * (k[:, :, : position + 1] @ q[:, :, position].unsqueeze(-1))
        weights = torch.exp(scores) / torch.exp(scores).sum(dim=2, keepdim=True)
        out.append((weights * v[:, :, : position + 1]).sum(dim=2))
    return torch.stack(out, dim=2)


@pytest.mark.parametrize("longest_kept", [0, 512])
@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch, longest_kept: int, length: int
) -> None:
    monkeypatch.setattr(attention, "LONGEST_KEPT", longest_kept)
    q, k = (torch.randn(2, 3, length, 6, dtype=torch.float64, requires_grad=True) for _ in "qk")
    v = torch.randn(2, 3, length, 4, dtype=torch.float64, requires_grad=True)
    expected = by_definition(q, k, v, 0.3)
    out = causal_attention(q, k, v, scale=0.3)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(expected)
    mine = torch.autograd.grad(out, (q, k, v), upstream)
    reference = torch.autograd.grad(expected, (q, k, v), upstream)
    for gradient, wanted in zip(mine, reference, strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_strided_inputs_and_gradients() -> None:
    """What the model hands over are views of [B, S, H, d]."""
    x = torch.randn(3, 2, 5, 3, 4, dtype=torch.float64)
    q, k, v = (part.transpose(1, 2) for part in x)
    expected = by_definition(q, k, v, 0.5)
    torch.testing.assert_close(causal_attention(q, k, v, scale=0.5), expected)
    q = q.detach().requires_grad_()
    out = causal_attention(q, k, v, scale=0.5).transpose(1, 2)
    (mine,) = torch.autograd.grad(out, q, torch.ones_like(out).transpose(2, 3).transpose(2, 3))
    (wanted,) = torch.autograd.grad(by_definition(q, k, v, 0.5).sum(), q)
    torch.testing.assert_close(mine, wanted)


def test_bf16_is_close_to_fp32() -> None:
    """Scores of about one, rounded to 2^-9, and probabilities likewise: 2 % of the norm at most."""
    q, k, v = (torch.randn(2, 2, 64, 16).bfloat16().requires_grad_() for _ in "qkv")
    wide = [x.detach().float().requires_grad_() for x in (q, k, v)]
    out, expected = causal_attention(q, k, v, scale=0.25), causal_attention(*wide, scale=0.25)
    upstream = torch.randn_like(expected)
    mine = (out, *torch.autograd.grad(out, (q, k, v), upstream.bfloat16()))
    reference = (expected, *torch.autograd.grad(expected, wide, upstream))
    for value, wanted in zip(mine, reference, strict=True):
        assert value.dtype == torch.bfloat16
        assert (value.float() - wanted).norm() < 0.02 * wanted.norm()


def test_operator_is_well_formed_for_the_compiler() -> None:
    arguments = [torch.randn(2, 3, 5, width, requires_grad=True) for width in (4, 4, 6)]
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.dsv3.kept_attention, tuple(arguments), test_utils=tests)
