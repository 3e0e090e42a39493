"""From router logits to the experts of each token (report section 2.1.2, eq. 12 to 16)."""

import torch
import torch.nn.functional as F
from torch import Tensor

SATURATION = 0.01


def router_logits(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """Logits [T, E], FP32 whatever the types of the inputs: a rounded score moves a token."""
    with torch.autocast(x_TD.device.type, enabled=False):
        return F.linear(x_TD.float(), weight_ED.float())


def router_scores(logits_TE: Tensor, scoring_func: str) -> Tensor:
    """Affinities [T, E] of tokens for experts (eq. 15; softmax as in V2)."""
    if scoring_func == "sigmoid":
        return logits_TE.sigmoid()
    if scoring_func == "softmax":
        return logits_TE.softmax(dim=-1)
    raise AssertionError(f"{scoring_func=}")


@torch.no_grad()
def select_experts(
    scores_TE: Tensor, bias_E: Tensor, *, top_k: int, n_group: int, topk_group: int
) -> Tensor:
    """Ids [T, K] of the experts with the highest biased scores, within each token's best groups.

    A group counts as much as the sum of its two best biased scores (node-limited routing). Experts
    of the other groups are masked with -inf: with zero they would beat negative biased scores.
    Ids of a token come in no particular order. Not differentiable: selection has no gradient.
    """
    biased_TE = scores_TE + bias_E
    if topk_group < n_group:
        grouped = biased_TE.unflatten(-1, (n_group, -1))
        group_score_TG = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(dim=-1)
        best = group_score_TG.topk(topk_group, dim=-1, sorted=False).indices
        excluded_TG = torch.ones_like(group_score_TG, dtype=torch.bool).scatter_(1, best, False)
        biased_TE = grouped.masked_fill(excluded_TG.unsqueeze(-1), float("-inf")).flatten(1)
    return biased_TE.topk(top_k, dim=-1, sorted=False).indices


def routing_weights(
    scores_TE: Tensor, expert_ids_TK: Tensor, *, normalise: bool, scaling_factor: float
) -> Tensor:
    """Gate values [T, K] from the scores without bias (eq. 13, 16), times the scaling factor."""
    chosen_TK = scores_TE.gather(1, expert_ids_TK)
    if normalise:
        chosen_TK = chosen_TK / (chosen_TK.sum(dim=-1, keepdim=True) + 1e-20)
    return chosen_TK * scaling_factor


@torch.no_grad()
def count_saturated(scores_TE: Tensor, scoring_func: str) -> Tensor:
    """Scores so close to their bounds that hardly a gradient passes, int64 scalar.

    Within SATURATION of 0 or 1; of 1 alone under softmax, where most scores are small by nature.
    """
    if scoring_func == "sigmoid":
        return ((scores_TE - 0.5).abs() > 0.5 - SATURATION).sum()
    return (scores_TE > 1 - SATURATION).sum()


def count_tokens(expert_ids_TK: Tensor, n_routed_experts: int) -> Tensor:
    """Tokens sent to each expert, int64 [E]; exact at any number of tokens."""
    ids_A = expert_ids_TK.flatten()
    counts_E = torch.zeros(n_routed_experts, dtype=torch.int64, device=ids_A.device)
    return counts_E.scatter_add_(0, ids_A, torch.ones_like(ids_A))
