"""The bias rule of the auxiliary-loss-free strategy (report 2.1.2)."""

from collections.abc import Mapping

import torch

from dsv3.config.balance import BalanceConfig
from dsv3.model.moe import MoE
from dsv3.train.load import Load


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
