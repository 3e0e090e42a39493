"""What the load of a step changes: expert biases (report 2.1.2), the loss per global batch."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dsv3.config.balance import BalanceConfig, BiasUpdateRule
from dsv3.model.moe import MoE
from dsv3.train.load import Load, take_load
from dsv3.train.ranks import Ranks


@torch.no_grad()
def update_biases(
    layers: Mapping[str, MoE], load: Load, balance: BalanceConfig, *, gamma: float
) -> None:
    """Move the expert biases of every MoE layer by the load of the step that just ended."""
    if not balance.has_expert_bias:
        return
    for name, moe in layers.items():
        change_E = bias_change(load.tokens_per_expert[name], balance.bias_update_rule)
        bias_E = moe.router.e_score_correction_bias
        bias_E.add_(change_E.to(bias_E), alpha=gamma)


def bias_change(load_E: Tensor, rule: BiasUpdateRule) -> Tensor:
    """Change of the biases in units of gamma, FP64 [E], from the load of a whole batch, int64 [E].

    `sign`: sign(mean - load), auxiliary-loss-free paper, algorithm 1 (arXiv 2408.15664).
    `zero_mean_sign`: minus its mean, so that biases do not drift together; the selection is the
    same. `proportional`: (mean - load) / mean. The differences are of integers: no sign depends on
    rounding.
    """
    tokens, experts = load_E.sum(), load_E.numel()
    underload_E = tokens - experts * load_E
    match rule:
        case "sign":
            return underload_E.sign().double()
        case "zero_mean_sign":
            sign_E = underload_E.sign()
            return sign_E.double() - sign_E.sum().double() / experts
        case "proportional":
            return underload_E.double() / tokens.clamp(min=1)


class Routed(Protocol):
    """A model, or this rank's view of one that a pipeline holds."""

    def route(self, input_ids_BS: Tensor) -> None:
        """Run every MoE layer for its counters alone."""


def count_batch(
    model: Routed,
    layers: Mapping[str, MoE],
    micro_batches: Sequence[Sequence[Tensor]],
    balance: BalanceConfig,
    ranks: Ranks | None = None,
) -> None:
    """Give the layers the load of the coming global batch, for the exact loss per global batch.

    A pass without gradients over all micro batches, the first argument of each being its input
    ids. A step of a single micro batch, over all ranks, counts in its own pass, and the counts are
    left at zero.
    """
    if balance.strategy != "aux_batch" or balance.batch_counts != "exact":
        return
    if len(micro_batches) == 1 and (ranks is None or ranks.size == 1):
        for moe in layers.values():
            _batch_counts(moe).zero_()
        return
    for input_ids_BS, *_ in micro_batches:
        model.route(input_ids_BS)
    remember_batch(layers, take_load(layers, ranks))


def remember_batch(layers: Mapping[str, MoE], load: Load) -> None:
    """Give the layers the counts of a global batch."""
    for name, moe in layers.items():
        _batch_counts(moe).copy_(load.tokens_per_expert[name])


def keep_for_next_step(layers: Mapping[str, MoE], load: Load, balance: BalanceConfig) -> None:
    """The load of this step is that of the next, where the arm says so."""
    if balance.strategy == "aux_batch" and balance.batch_counts == "previous_step":
        remember_batch(layers, load)


def _batch_counts(moe: MoE) -> Tensor:
    assert moe.batch_tokens_per_expert_E is not None, "the arm has no loss per global batch"
    return moe.batch_tokens_per_expert_E
