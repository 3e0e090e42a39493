"""Expert load of a step, and the bias rule of the auxiliary-loss-free strategy (report 2.1.2)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dsv3.config.balance import BalanceConfig
from dsv3.model.moe import MoE


@dataclass(frozen=True)
class Load:
    """Tokens each expert of each MoE layer got in one optimizer step: layer -> int64 [E]."""

    tokens_per_expert: dict[str, Tensor]

    def max_violation(self) -> dict[str, float]:
        """MaxVio per layer: largest load / mean load - 1 (arXiv 2408.15664, section 4)."""
        return {name: _max_violation(load_E) for name, load_E in self.tokens_per_expert.items()}

    def dead_experts(self) -> dict[str, int]:
        """Experts per layer that got no token."""
        return {name: int((load_E == 0).sum()) for name, load_E in self.tokens_per_expert.items()}


def _max_violation(load_E: Tensor) -> float:
    mean = load_E.double().mean().item()
    return load_E.max().item() / mean - 1 if mean > 0 else 0.0


def take_load(layers: Mapping[str, MoE]) -> Load:
    """Read the counts of the step that just ended and set them back to zero."""
    load = Load({name: moe.tokens_per_expert_E.cpu().clone() for name, moe in layers.items()})
    for moe in layers.values():
        moe.tokens_per_expert_E.zero_()
    return load


@torch.no_grad()
def update_biases(
    layers: Mapping[str, MoE], load: Load, balance: BalanceConfig, speed_fraction: float
) -> None:
    """Once per optimizer step: b_i += gamma * sign(mean load - load_i), for every MoE layer.

    The sign is taken on integers, so it cannot depend on rounding or on the order of a sum.
    """
    if balance.strategy != "aux_free":
        return
    gamma = balance.bias_update_speed * speed_fraction
    for name, moe in layers.items():
        load_E = load.tokens_per_expert[name]
        underload_E = load_E.sum() - load_E.numel() * load_E
        bias_E = moe.router.e_score_correction_bias
        bias_E.add_(underload_E.sign().to(bias_E), alpha=gamma)
