"""The router's bias and scores under every precision."""

from collections.abc import Callable

import pytest
import torch

from dsv3.config.model import ModelConfig
from dsv3.model.transformer import Transformer

Build = Callable[..., Transformer]


@pytest.mark.parametrize("convert", ["bfloat16", "half", "to", "double"])
def test_converting_the_model_leaves_bias_and_counts_alone(
    config: ModelConfig, build: Build, convert: str
) -> None:
    model = build(config)
    exact = torch.arange(8) * 1e-3 + 1.0  # steps that BF16 cannot hold
    for moe in model.moe_layers().values():
        moe.router.e_score_correction_bias.copy_(exact)
        moe.tokens_per_expert_E.fill_(2**40 + 1)
    model = model.to(torch.bfloat16) if convert == "to" else getattr(model, convert)()
    assert len(model.moe_layers()) == 3
    for moe in model.moe_layers().values():
        assert moe.router.weight.dtype != torch.float32
        assert moe.router.e_score_correction_bias.dtype == torch.float32
        assert torch.equal(moe.router.e_score_correction_bias, exact)
        assert torch.equal(moe.tokens_per_expert_E, torch.full((8,), 2**40 + 1))
        assert (
            moe.router.e_score_correction_bias
            is dict(moe.router.named_buffers())["e_score_correction_bias"]
        )


def test_state_holds_the_bias_and_not_the_counts(config: ModelConfig, build: Build) -> None:
    names = build(config).state_dict().keys()
    assert "model.layers.1.mlp.gate.e_score_correction_bias" in names
    assert not any("tokens_per_expert" in name for name in names)


def test_bias_is_no_parameter_and_gets_no_gradient(config: ModelConfig, build: Build) -> None:
    model = build(config)
    assert not any("bias" in name for name, _ in model.named_parameters())
    bias = model.moe_layers()["model.layers.1.mlp"].router.e_score_correction_bias
    assert not bias.requires_grad


def test_gate_values_are_fp32_in_a_bf16_model(config: ModelConfig, build: Build) -> None:
    router = build(config, dtype=torch.bfloat16).moe_layers()["model.layers.2.mlp"].router
    x = torch.randn(5, 24).bfloat16()
    _, _, ids, weights = router(x)
    assert weights.dtype == torch.float32
    scores = (x.float() @ router.weight.float().t()).sigmoid().gather(1, ids)
    expected = scores / scores.sum(-1, keepdim=True) * config.routed_scaling_factor
    torch.testing.assert_close(weights, expected, rtol=1e-6, atol=0)


def test_bias_moves_selection_but_not_the_weight_of_a_chosen_expert(
    config: ModelConfig, build: Build
) -> None:
    config = config.model_copy(update={"norm_topk_prob": False, "n_group": 1, "topk_group": 1})
    router = build(config).moe_layers()["model.layers.1.mlp"].router
    x = torch.randn(4, 24)
    router.e_score_correction_bias[5] = 3.0
    _, _, ids, weights = router(x)
    assert (ids == 5).any(dim=1).all()
    expected = (x @ router.weight[5]).sigmoid() * config.routed_scaling_factor
    torch.testing.assert_close(weights[ids == 5], expected)
