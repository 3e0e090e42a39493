"""A compiled model is the same model."""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dsv3.config.model import ModelConfig
from dsv3.model.compile import compile_model
from dsv3.model.transformer import Transformer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler"),
]


def test_compiled_values_gradients_and_counts_equal_the_plain_ones(
    config: ModelConfig, build: Callable[..., Transformer], batch: tuple[Tensor, Tensor]
) -> None:
    config = config.model_copy(update={"num_hidden_layers": 2})
    plain, compiled = build(config), build(config)
    compile_model(compiled)
    for inputs, labels in (batch, (batch[0].flip(0), batch[1].flip(0))):  # other rows per expert
        losses = [model(inputs, labels).objective for model in (plain, compiled)]
        for loss in losses:
            loss.backward()
        # The same formulas in FP32, fused: rounded at other places.
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
    gradients = {name: p.grad for name, p in plain.named_parameters()}
    for name, parameter in compiled.named_parameters():
        assert parameter.grad is not None
        difference = (parameter.grad - gradients[name]).norm()
        assert difference < 1e-5 * gradients[name].norm(), name
    for name, moe in plain.moe_layers().items():
        counts = compiled.moe_layers()[name].tokens_per_expert_E
        assert torch.equal(counts, moe.tokens_per_expert_E)
