"""The balance loss of one MoE layer, as an arm of the ablation defines it."""

import torch
from torch import Tensor

from dsv3.config.balance import BalanceConfig
from dsv3.config.model import ModelConfig
from dsv3.model.router import Routing
from dsv3.ops.balance import (
    batch_load,
    batch_loss,
    communication_loss,
    count_per_group,
    count_per_sequence,
    device_loss,
    expert_loss,
    normalised_scores,
)


class BalanceLoss:
    """Weighted sum of an arm's losses: a function of the routing alone."""

    def __init__(self, config: ModelConfig, balance: BalanceConfig) -> None:
        self.config = config
        self.balance = balance

    def __call__(self, routing: Routing, counts_BE: Tensor, batch_E: Tensor | None) -> Tensor:
        """The loss, an FP32 scalar; its gradient goes to the router's logits.

        `counts_BE` are the tokens of each sequence routed to each expert in this pass, `batch_E`
        those of the whole batch for the loss per global batch, all zero where nobody counted them.
        """
        c, arm = self.config, self.balance
        B, E = counts_BE.shape
        scores_BSE = self._scores(routing).view(B, -1, E)
        if batch_E is not None:
            in_pass = counts_BE.sum(dim=0) if arm.batch_counts == "exact" else None
            return arm.batch_aux_loss_coeff * batch_loss(scores_BSE, batch_load(batch_E, in_pass))
        ids_BSK = self._selection(routing).view(B, -1, c.num_experts_per_tok)
        load_BE = counts_BE
        if arm.aux_loss_selection == "top_k_of_scores":
            load_BE = count_per_sequence(ids_BSK.flatten(1), E)
        loss = arm.sequence_aux_loss_coeff * expert_loss(scores_BSE, load_BE, c.num_experts_per_tok)
        if arm.device_aux_loss_coeff > 0:
            of_devices = device_loss(scores_BSE, load_BE, c.num_experts_per_tok, c.n_group)
            loss = loss + arm.device_aux_loss_coeff * of_devices
        if arm.communication_aux_loss_coeff > 0:
            tokens_BG = count_per_group(ids_BSK, E, c.n_group)
            of_traffic = communication_loss(scores_BSE, tokens_BG, c.topk_group)
            loss = loss + arm.communication_aux_loss_coeff * of_traffic
        return loss

    def _scores(self, routing: Routing) -> Tensor:
        if self.balance.aux_loss_scores == "plain":
            return routing.scores_TE
        return normalised_scores(routing.logits_TE, self.config.scoring_func)

    @torch.no_grad()
    def _selection(self, routing: Routing) -> Tensor:
        if self.balance.aux_loss_selection == "routed":
            return routing.expert_ids_TK
        k = self.config.num_experts_per_tok
        return routing.scores_TE.topk(k, dim=-1, sorted=False).indices


def balance_loss_of(config: ModelConfig, balance: BalanceConfig | None) -> BalanceLoss | None:
    """The loss of a layer under `balance`; None if the arm has none."""
    if balance is None or not any(balance.coeffs.values()):
        return None
    return BalanceLoss(config, balance)
