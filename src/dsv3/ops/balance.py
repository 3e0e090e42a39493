"""Balance losses of a MoE layer, from its router's scores and from where the tokens went.

A load f is a count and has no gradient; all of it goes through P, the mean score. With an even load
sum_i f_i P_i is sum_i P_i, which is 1 for normalised scores.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def normalised_scores(logits_TE: Tensor, scoring_func: str) -> Tensor:
    """s_i / sum_j s_j of each token (report eq. 19), from logits [..., E].

    A softmax of log s: with an epsilon below the sum, a router could lose the whole loss by
    making all its scores tiny.
    """
    if scoring_func == "sigmoid":
        return F.logsigmoid(logits_TE).softmax(dim=-1)
    if scoring_func == "softmax":
        return logits_TE.softmax(dim=-1)
    raise AssertionError(f"{scoring_func=}")


@torch.no_grad()
def count_per_sequence(expert_ids_BA: Tensor, n_routed_experts: int) -> Tensor:
    """Tokens of each sequence sent to each expert, int64 [B, E]; exact at any number of tokens."""
    counts_BE = expert_ids_BA.new_zeros((expert_ids_BA.shape[0], n_routed_experts))
    return counts_BE.scatter_add_(1, expert_ids_BA, torch.ones_like(expert_ids_BA))


@torch.no_grad()
def count_per_group(expert_ids_BSK: Tensor, n_routed_experts: int, n_group: int) -> Tensor:
    """Tokens of each sequence sent to each group, once however many of its experts they use.

    int64 [B, G].
    """
    groups_BSK = expert_ids_BSK // (n_routed_experts // n_group)
    reached_BSG = torch.zeros(
        (*groups_BSK.shape[:2], n_group), dtype=torch.bool, device=groups_BSK.device
    ).scatter_(2, groups_BSK, True)
    return reached_BSG.sum(dim=1)


def expert_loss(scores_BSE: Tensor, counts_BE: Tensor, top_k: int) -> Tensor:
    """sum_i f_i P_i per sequence, averaged over sequences (report eq. 17 to 20 without alpha)."""
    f_BE, p_BE = _load(counts_BE, scores_BSE.shape[1] * top_k), scores_BSE.mean(dim=1)
    return torch.sum(f_BE * p_BE, dim=-1).mean()


def device_loss(scores_BSE: Tensor, counts_BE: Tensor, top_k: int, n_group: int) -> Tensor:
    """V2's device-level loss, devices being groups (arXiv 2405.04434, eq. 26 to 28, no alpha_2)."""
    f_BE, p_BE = _load(counts_BE, scores_BSE.shape[1] * top_k), scores_BSE.mean(dim=1)
    f_BG = f_BE.unflatten(-1, (n_group, -1)).mean(dim=-1)
    return torch.sum(f_BG * _by_group(p_BE, n_group), dim=-1).mean()


def communication_loss(scores_BSE: Tensor, tokens_BG: Tensor, topk_group: int) -> Tensor:
    """V2's communication loss (arXiv 2405.04434, eq. 29 to 31, without alpha_3).

    `tokens_BG` are the tokens sent to each group; a token is sent to `topk_group` at most.
    """
    f_BG = _load(tokens_BG, scores_BSE.shape[1] * topk_group)
    p_BG = _by_group(scores_BSE.mean(dim=1), tokens_BG.shape[1])
    return torch.sum(f_BG * p_BG, dim=-1).mean()


def batch_loss(scores_BSE: Tensor, load_E: Tensor) -> Tensor:
    """sum_i f_i P_i with f of the global batch and P over the tokens at hand (report 4.5.3).

    f is fixed while a batch is accumulated, so the mean over its micro batches is the loss of the
    undivided batch.
    """
    return (load_E * scores_BSE.mean(dim=(0, 1))).sum()


def batch_load(batch_E: Tensor, otherwise_E: Tensor | None) -> Tensor:
    """Load relative to an even one [E] from the counts of a batch.

    Where nothing was counted, that of `otherwise_E`, or an even one if None.
    """
    even = torch.ones(batch_E.shape, device=batch_E.device)
    other_E = even if otherwise_E is None else _load(otherwise_E, otherwise_E.sum())
    total = batch_E.sum()
    counted_E = _load(batch_E, total.clamp(min=1))
    return torch.where(total > 0, counted_E, other_E)


def _load(counts: Tensor, assignments: int | Tensor) -> Tensor:
    """FP32 counts over what each would be if all were equal; the last dimension is shared out."""
    load: Tensor = counts.float() * counts.shape[-1] / assignments
    return load


def _by_group(p_BE: Tensor, n_group: int) -> Tensor:
    return torch.sum(p_BE.unflatten(-1, (n_group, -1)), dim=-1)
