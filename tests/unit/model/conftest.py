"""A small model for the tests of this folder."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dsv3.config.model import AuxLossCoeffs, ModelConfig
from dsv3.model.backends.torch import TorchBackend
from dsv3.model.init import materialise
from dsv3.model.transformer import Transformer
from dsv3.parallel.dispatch import LocalDispatcher


@pytest.fixture
def config() -> ModelConfig:
    return ModelConfig(
        name="small",
        vocab_size=61,
        hidden_size=24,
        num_hidden_layers=4,
        first_k_dense_replace=1,
        intermediate_size=40,
        moe_intermediate_size=10,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=4,
        topk_group=2,
        scoring_func="sigmoid",
        norm_topk_prob=True,
        routed_scaling_factor=1.5,
        num_attention_heads=2,
        q_lora_rank=12,
        kv_lora_rank=8,
        qk_nope_head_dim=6,
        qk_rope_head_dim=4,
        v_head_dim=8,
        max_position_embeddings=64,
        rope_theta=10000.0,
        rope_scaling=None,
        rms_norm_eps=1e-6,
        initializer_range=0.05,
        aux_loss_coeffs=AuxLossCoeffs(sequence=0.001, device=0.05, communication=0.02),
    )


@pytest.fixture
def build() -> Callable[..., Transformer]:
    """Build and materialise: build(config, seed=, dtype=, **arguments of Transformer)."""

    def make(
        config: ModelConfig, *, seed: int = 1, dtype: torch.dtype = torch.float32, **arguments: Any
    ) -> Transformer:
        with torch.device("meta"):
            model = Transformer(
                config,
                backend=TorchBackend(),
                dispatcher=LocalDispatcher(config.n_routed_experts),
                **arguments,
            )
        materialise(model, config, seed=seed, device=torch.device("cpu"), dtype=dtype)
        return model

    return make


@pytest.fixture
def batch(config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels [3, 16]."""
    generator = torch.Generator().manual_seed(11)
    tokens = torch.randint(0, config.vocab_size, (3, 17), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]
