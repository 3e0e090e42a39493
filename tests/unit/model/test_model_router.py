"""The router's bias and scores under every precision."""

from collections.abc import Callable

import torch

from dsv3.config.model import ModelConfig
from dsv3.model.transformer import Transformer

Build = Callable[..., Transformer]


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
