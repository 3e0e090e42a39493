"""The MoE layer against a loop over tokens and experts; its counts; experts without tokens."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dsv3.config.model import ModelConfig
from dsv3.model.moe import MLP, MoE
from dsv3.model.transformer import Transformer

Build = Callable[..., Transformer]
Batch = tuple[Tensor, Tensor]


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    h = gate @ x
    return down @ (h / (1 + torch.exp(-h)) * (up @ x))


def by_definition(moe: MoE, x_TD: Tensor, config: ModelConfig) -> Tensor:
    """Report eq. 12 to 16 and the released gate, token by token; gates through chosen scores."""
    logits = x_TD @ moe.router.weight.t()
    softmax = config.scoring_func == "softmax"
    scores = logits.softmax(-1) if softmax else 1 / (1 + torch.exp(-logits))
    size = config.n_routed_experts // config.n_group
    out = []
    for token, x in enumerate(x_TD):
        biased = (scores[token] + moe.router.e_score_correction_bias).tolist()
        groups = [range(g * size, (g + 1) * size) for g in range(config.n_group)]
        best = sorted(groups, key=lambda g: -sum(sorted(biased[i] for i in g)[-2:]))
        allowed = [i for g in best[: config.topk_group] for i in g]
        chosen = sorted(allowed, key=lambda i: -biased[i])[: config.num_experts_per_tok]
        total = sum(scores[token, i] for i in chosen) if config.norm_topk_prob else 1.0
        y = torch.zeros_like(x)
        for i in chosen:
            gate, up = moe.experts.gate_up_proj[i].chunk(2)
            weight = config.routed_scaling_factor * scores[token, i] / total
            y = y + weight * swiglu(x, gate, up, moe.experts.down_proj[i])
        if isinstance(moe.shared_experts, MLP):
            s = moe.shared_experts
            y = y + swiglu(x, s.gate_proj.weight, s.up_proj.weight, s.down_proj.weight)
        out.append(y)
    return torch.stack(out)


@pytest.mark.parametrize("bias", [(0.0, 0.0), (-0.3, 0.3), (-4.0, -3.0)])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"scoring_func": "softmax", "norm_topk_prob": False},
        {"n_shared_experts": 0, "n_group": 1, "topk_group": 1},
    ],
)
def test_values_and_gradients_equal_the_definition(
    config: ModelConfig, build: Build, change: dict[str, object], bias: tuple[float, float]
) -> None:
    config = config.model_copy(update=change)
    moe = next(iter(build(config).moe_layers().values()))
    generator = torch.Generator().manual_seed(3)
    low, high = bias
    with torch.no_grad():
        drawn = low + (high - low) * torch.rand(8, generator=generator)
        moe.router.e_score_correction_bias.copy_(drawn)
        for parameter in moe.parameters():
            parameter.mul_(6)  # outputs and gradients of order one
    x = torch.randn(1, 20, 24, generator=generator).requires_grad_()
    out, *_ = moe(x)
    expected = by_definition(moe, x[0], config)
    # FP32, sums of at most 24 products in another order.
    torch.testing.assert_close(out[0], expected, rtol=1e-5, atol=1e-5)

    upstream = torch.randn(20, 24, generator=generator)
    leaves = {"input": x, **dict(moe.named_parameters())}
    mine = torch.autograd.grad((out[0] * upstream).sum(), list(leaves.values()))
    reference = torch.autograd.grad((expected * upstream).sum(), list(leaves.values()))
    for name, gradient, wanted in zip(leaves, mine, reference, strict=True):
        assert wanted.norm() > 0, name
        assert (gradient - wanted).norm() < 1e-5 * wanted.norm(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("used", [[0, 1], [6, 7], [2, 3, 4, 5], list(range(8))])
def test_every_expert_has_a_gradient_and_unused_ones_zero(
    config: ModelConfig, build: Build, batch: Batch, used: list[int], dtype: torch.dtype
) -> None:
    """The bias sends all tokens to `used`: first, last or most experts get no token."""
    config = config.model_copy(update={"n_group": 1, "topk_group": 1})
    model = build(config, dtype=dtype)
    for moe in model.moe_layers().values():
        moe.router.e_score_correction_bias.fill_(-9.0)[used] = 0.0
    model(*batch).objective.backward()
    for moe in model.moe_layers().values():
        reached = moe.tokens_per_expert_E > 0
        assert set(reached.nonzero().flatten().tolist()) <= set(used)
        for parameter in (moe.experts.gate_up_proj, moe.experts.down_proj):
            assert parameter.grad is not None
            assert torch.isfinite(parameter.grad).all()
            assert torch.equal(parameter.grad.flatten(1).any(dim=1), reached)


def test_counts_are_exact_and_of_training_only(
    config: ModelConfig, build: Build, batch: Batch
) -> None:
    model = build(config)
    for _ in range(2):
        model(*batch)
    assignments = 2 * batch[0].numel() * config.num_experts_per_tok
    for moe in model.moe_layers().values():
        assert moe.tokens_per_expert_E.dtype == torch.int64
        assert moe.tokens_per_expert_E.sum() == assignments
        moe.tokens_per_expert_E.zero_()

    model.eval()
    model(*batch)
    model.token_losses(*batch)
    model.logits(batch[0])
    assert not any(moe.tokens_per_expert_E.any() for moe in model.moe_layers().values())


def test_the_count_of_one_pass_is_what_the_router_chose(config: ModelConfig, build: Build) -> None:
    moe = next(iter(build(config).moe_layers().values()))
    x = torch.randn(2, 9, 24)
    *_, load = moe(x)
    counts = load.tokens_per_expert_BE.sum(dim=0)
    ids = moe.router(x.flatten(0, 1)).expert_ids_TK
    assert counts.tolist() == [(ids == e).sum().item() for e in range(8)]
    assert not moe.tokens_per_expert_E.any()  # added by the block, once
