"""Routing against a plain oracle, token by token."""

import pytest
import torch

from dsv3.ops.routing import (
    count_tokens,
    router_logits,
    router_scores,
    routing_weights,
    select_experts,
)


def chosen_by_hand(
    scores: list[float], bias: list[float], top_k: int, n_group: int, topk_group: int
) -> set[int]:
    """Report 2.1.2 and the released gate, in plain Python: best groups, then best experts."""
    size = len(scores) // n_group
    biased = [s + b for s, b in zip(scores, bias, strict=True)]
    groups = [range(g * size, (g + 1) * size) for g in range(n_group)]
    best = sorted(groups, key=lambda g: -sum(sorted(biased[i] for i in g)[-2:]))[:topk_group]
    return set(sorted((i for g in best for i in g), key=lambda i: -biased[i])[:top_k])


@pytest.mark.parametrize("bias_range", [(0.0, 0.0), (-0.5, 0.5), (-5.0, -4.0), (4.0, 5.0)])
@pytest.mark.parametrize(
    ("n_experts", "n_group", "topk_group", "top_k"),
    [(16, 1, 1, 4), (16, 4, 2, 4), (16, 4, 1, 4), (12, 6, 3, 5), (8, 8, 3, 3), (16, 4, 4, 3)],
)
def test_selection_equals_the_oracle(
    bias_range: tuple[float, float], n_experts: int, n_group: int, topk_group: int, top_k: int
) -> None:
    generator = torch.Generator().manual_seed(7)
    scores = torch.randn(64, n_experts, generator=generator).sigmoid()
    low, high = bias_range
    bias = low + (high - low) * torch.rand(n_experts, generator=generator)
    ids = select_experts(scores, bias, top_k=top_k, n_group=n_group, topk_group=topk_group)
    for token in range(64):
        expected = chosen_by_hand(scores[token].tolist(), bias.tolist(), top_k, n_group, topk_group)
        assert set(ids[token].tolist()) == expected


def test_weights_come_from_scores_without_bias() -> None:
    scores = torch.tensor([[0.2, 0.4, 0.6]])
    ids = torch.tensor([[2, 0]])
    plain = routing_weights(scores, ids, normalise=False, scaling_factor=2.0)
    torch.testing.assert_close(plain, torch.tensor([[1.2, 0.4]]), rtol=1e-6, atol=0)
    normalised = routing_weights(scores, ids, normalise=True, scaling_factor=2.0)
    torch.testing.assert_close(normalised, torch.tensor([[1.5, 0.5]]), rtol=1e-6, atol=0)


def test_gradient_reaches_the_chosen_scores_only() -> None:
    scores = torch.rand(3, 5, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0, 3], [1, 2], [4, 0]])
    weights = routing_weights(scores, ids, normalise=True, scaling_factor=2.5)
    (weights * torch.rand(3, 2)).sum().backward()
    assert scores.grad is not None
    assert torch.equal(scores.grad != 0, torch.zeros(3, 5).scatter(1, ids, 1.0) != 0)
    assert torch.autograd.gradcheck(
        lambda s: routing_weights(s, ids, normalise=True, scaling_factor=2.5), scores
    )


@pytest.mark.parametrize("scoring_func", ["sigmoid", "softmax"])
def test_scores(scoring_func: str) -> None:
    logits = torch.tensor([[0.0, 1.0, -2.0]])
    plain = torch.exp(logits) / torch.exp(logits).sum() if scoring_func == "softmax" else None
    expected = 1 / (1 + torch.exp(-logits)) if plain is None else plain
    torch.testing.assert_close(router_scores(logits, scoring_func), expected)


def test_logits_are_fp32_in_every_precision() -> None:
    """BF16 in, FP32 products out: equal to widening first, also under autocast."""
    x, weight = torch.randn(8, 16).bfloat16(), torch.randn(4, 16).bfloat16()
    expected = x.float() @ weight.float().t()
    logits = router_logits(x, weight)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(router_logits(x, weight), expected)


def test_counts_are_exact_integers() -> None:
    ids = torch.tensor([[0, 3], [3, 1], [3, 0]])
    counts = count_tokens(ids, 5)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [2, 1, 0, 3, 0]
