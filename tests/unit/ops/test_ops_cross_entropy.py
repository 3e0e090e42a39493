"""The chunked head against the definition."""

import pytest
import torch

from dsv3.ops import cross_entropy
from dsv3.ops.cross_entropy import (
    linear_cross_entropy,
    linear_token_losses,
    plain_linear_cross_entropy,
)


def inputs(
    dtype: torch.dtype, tokens: int = 13, width: int = 6, vocab: int = 17
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(vocab, width, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, vocab, (tokens,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), labels


@pytest.mark.parametrize("upstream", [1.0, 0.25, -3.0, 0.0])
@pytest.mark.parametrize("rows_per_chunk", [1, 4, 13, 100])
def test_values_and_gradients_equal_the_definition(
    monkeypatch: pytest.MonkeyPatch, rows_per_chunk: int, upstream: float
) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", rows_per_chunk)
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", 1)
    hidden, weight, labels = inputs(torch.float64)
    expected = plain_linear_cross_entropy(hidden, weight, labels)
    loss = linear_cross_entropy(hidden, weight, labels)
    torch.testing.assert_close(loss, expected)
    mine = torch.autograd.grad(loss * upstream, (hidden, weight))
    reference = torch.autograd.grad(expected * upstream, (hidden, weight))
    for gradient, wanted in zip(mine, reference, strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_gradcheck() -> None:
    hidden, weight, labels = inputs(torch.float64, tokens=5, vocab=7)
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, labels), (hidden, weight)
    )


def test_twice_backward_through_one_graph_gives_the_same_gradient() -> None:
    hidden, weight, labels = inputs(torch.float32)
    loss = linear_cross_entropy(hidden, weight, labels)
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(loss, (hidden, weight))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_extreme_logits_stay_finite() -> None:
    hidden, weight = torch.full((2, 1), 300.0), torch.tensor([[1.0], [-1.0], [0.99]])
    labels = torch.tensor([0, 1])
    loss = linear_cross_entropy(hidden.requires_grad_(), weight.requires_grad_(), labels)
    expected = plain_linear_cross_entropy(hidden, weight, labels)
    assert torch.isfinite(loss)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert torch.isfinite(hidden.grad).all()


def test_bf16_head_has_an_fp32_loss_and_gradients_rounded_once() -> None:
    """Same logits on both sides: only the rounding of the gradient of the logits, 2^-9, differs."""
    hidden, weight, labels = inputs(torch.bfloat16, tokens=64, width=32, vocab=50)
    loss = linear_cross_entropy(hidden, weight, labels)
    expected = plain_linear_cross_entropy(hidden, weight, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    mine = torch.autograd.grad(loss, (hidden, weight))
    reference = torch.autograd.grad(expected, (hidden, weight))
    for gradient, wanted in zip(mine, reference, strict=True):
        assert gradient.dtype == torch.bfloat16
        assert (gradient - wanted).float().norm() < 2**-8 * wanted.float().norm()


def test_bf16_chunks_are_added_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """256 chunks added in BF16 would lose what is below 2^-9 of the sum: several percent."""
    hidden, weight, labels = inputs(torch.bfloat16, tokens=256, width=16, vocab=20)
    (whole,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels), weight)
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 1)
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", 1)
    (chunked,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels), weight)
    # Each chunk's product is rounded once to BF16; errors of 256 add up in quadrature.
    assert (chunked.float() - whole.float()).norm() < 2**-8 * whole.float().norm()


def test_token_losses_and_the_loss_without_a_gradient() -> None:
    hidden, weight, labels = inputs(torch.float32)
    losses = linear_token_losses(hidden, weight, labels)
    by_hand = -(hidden @ weight.t()).log_softmax(-1)[torch.arange(13), labels]
    assert losses.dtype == torch.float32
    assert not losses.requires_grad
    torch.testing.assert_close(losses, by_hand.detach())
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(hidden, weight, labels), losses.mean())
