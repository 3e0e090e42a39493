"""A model of a few thousand weights for the oracles, and a look at what its routers read."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dsv3.config.balance import BalanceConfig
from dsv3.config.model import ModelConfig
from dsv3.config.mtp import MtpConfig
from dsv3.model.backends import Backend
from dsv3.model.backends.torch import TorchBackend
from dsv3.model.init import materialise
from dsv3.model.transformer import Transformer
from dsv3.parallel.dispatch import LocalDispatcher

NO_BALANCE: dict[str, object] = {
    "strategy": "none",
    "bias_update_speed": 0.0,
    "bias_update_rule": "sign",
    "sequence_aux_loss_coeff": 0.0,
    "device_aux_loss_coeff": 0.0,
    "communication_aux_loss_coeff": 0.0,
    "batch_aux_loss_coeff": 0.0,
    "aux_loss_selection": "top_k_of_scores",
    "aux_loss_scores": "normalised",
    "batch_counts": "exact",
}
ARMS: dict[str, dict[str, object]] = {
    "aux_loss": {"strategy": "aux_loss", "sequence_aux_loss_coeff": 0.7},
    "aux_loss_v2": {
        "strategy": "aux_loss_v2",
        "sequence_aux_loss_coeff": 0.3,
        "device_aux_loss_coeff": 0.5,
        "communication_aux_loss_coeff": 0.2,
        "aux_loss_selection": "routed",
    },
    "aux_free_seq": {
        "strategy": "aux_free_seq",
        "bias_update_speed": 0.01,
        "sequence_aux_loss_coeff": 0.1,
    },
    "aux_batch": {
        "strategy": "aux_batch",
        "batch_aux_loss_coeff": 0.6,
        "aux_loss_selection": "routed",
    },
}
"""The arms that have a loss; strengths at which it matters."""


def balance(**values: object) -> BalanceConfig:
    """An arm, everything not named switched off."""
    return BalanceConfig.model_validate(NO_BALANCE | values)


def mtp(depth: int, *, read: str = "normed") -> MtpConfig:
    """Modules predicting up to `depth` tokens further."""
    fields = {"num_nextn_predict_layers": depth, "loss_coeff": 0.3, "input": read}
    return MtpConfig.model_validate(fields)


def model_config(**changes: object) -> ModelConfig:
    """Two layers, the second with eight experts in four groups."""
    fields: dict[str, object] = {
        "name": "oracle",
        "vocab_size": 29,
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "first_k_dense_replace": 1,
        "intermediate_size": 16,
        "moe_intermediate_size": 6,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.5,
        "num_attention_heads": 2,
        "q_lora_rank": None,
        "kv_lora_rank": 6,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 2,
        "v_head_dim": 4,
        "max_position_embeddings": 64,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.3,
        "balance_strengths": {
            "bias_update_speed": 1e-3,
            "sequence": 1e-3,
            "device": 5e-2,
            "communication": 2e-2,
        },
    }
    return ModelConfig.model_validate(fields | changes)


def build(
    config: ModelConfig,
    *,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
    backend: Backend | None = None,
    **arguments: object,
) -> Transformer:
    """A materialised model in training mode."""
    with torch.device("meta"):
        model = Transformer(
            config,
            backend=TorchBackend() if backend is None else backend,
            dispatcher=LocalDispatcher(config.n_routed_experts),
            **arguments,  # type: ignore[arg-type]
        )
    materialise(model, config, seed=seed, device=torch.device("cpu"), dtype=dtype)
    return model


def batch(config: ModelConfig, sequences: int, length: int, *, seed: int = 5) -> list[Tensor]:
    """Input ids and labels [B, S]."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(config.vocab_size, (sequences, length + 1), generator=generator)
    return [tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()]


def counted_layer(counts: list[int]) -> Any:
    """What the bias rules touch of a MoE layer, and nothing else."""
    zero = torch.zeros((), dtype=torch.int64)
    return SimpleNamespace(
        config=SimpleNamespace(num_experts_per_tok=1),
        tokens_per_expert_E=torch.tensor(counts),
        sequence_peaks=zero.clone(),
        saturated_scores=zero.clone(),
        router=SimpleNamespace(e_score_correction_bias=torch.zeros(len(counts))),
    )


@contextmanager
def router_inputs(model: Transformer) -> Iterator[Mapping[str, list[Tensor]]]:
    """What every router read in the passes inside, [T, D] with its graph, by layer."""
    seen: dict[str, list[Tensor]] = {name: [] for name in model.moe_layers()}
    handles = [
        moe.router.register_forward_pre_hook(
            lambda _, arguments, name=name: seen[name].append(arguments[0])
        )
        for name, moe in model.moe_layers().items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def router_logits(model: Transformer, name: str, x_TD: Tensor, sequences: int) -> Tensor:
    """Logits [B, S, E] in FP64, differentiable down to every weight."""
    logits_TE = x_TD.double() @ model.moe_layers()[name].router.weight.double().t()
    return logits_TE.unflatten(0, (sequences, -1))
