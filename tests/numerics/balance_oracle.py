"""Balance losses and bias rules as the papers print them: plain loops, nothing of dsv3.

Scores are nested lists [sequence][token][expert] of FP64 scalars, so that autograd differentiates
the loops; a selection is a list [sequence][token] of sets of experts.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

Scores = list[list[list[Tensor]]]
Selection = list[list[set[int]]]


class Cut(NamedTuple):
    """The largest values, and by how much the smallest of them beats the rest."""

    chosen: set[int]
    margin: float


class Routed(NamedTuple):
    """Where every token goes, and the closest decision on the way there."""

    selection: Selection
    margin: float


def scores_of(logits_BSE: Tensor, scoring_func: str) -> Scores:
    """Report eq. 15 (sigmoid) or V2's eq. 22 (softmax), one score at a time, in FP64."""
    return [
        [_token_scores(logits_E.double(), scoring_func) for logits_E in logits_SE]
        for logits_SE in logits_BSE
    ]


def _token_scores(logits_E: Tensor, scoring_func: str) -> list[Tensor]:
    if scoring_func == "sigmoid":
        return [1 / (1 + torch.exp(-logit)) for logit in logits_E]
    exponentials = [torch.exp(logit) for logit in logits_E]
    return [value / _sum(exponentials) for value in exponentials]


def best_by_score(scores: Scores, top_k: int) -> Routed:
    """Eq. 18 as printed: the top-k of the scores alone, without bias or group limit."""
    cuts = [[_cut(_floats(token), top_k) for token in sequence] for sequence in scores]
    return Routed([[c.chosen for c in row] for row in cuts], min(c.margin for r in cuts for c in r))


def routed(
    scores: Scores, bias: Sequence[float], *, top_k: int, n_group: int, topk_group: int
) -> Routed:
    """Report 2.1.2: groups by the sum of their two best biased scores, then experts in them."""
    selection, margins = [], []
    for sequence in scores:
        row = []
        for token in sequence:
            biased = [s + b for s, b in zip(_floats(token), bias, strict=True)]
            groups = groups_of(len(biased), n_group)
            strength = [sum(sorted(biased[i] for i in group)[-2:]) for group in groups]
            best = _cut(strength, topk_group)
            allowed = [i for g in sorted(best.chosen) for i in groups[g]]
            inner = _cut([biased[i] for i in allowed], top_k)
            row.append({allowed[i] for i in inner.chosen})
            margins += [best.margin, inner.margin]
        selection.append(row)
    return Routed(selection, min(margins))


def groups_of(experts: int, n_group: int) -> list[range]:
    """Consecutive experts in equal groups: the devices of V2's losses."""
    size = experts // n_group
    return [range(g * size, (g + 1) * size) for g in range(n_group)]


def sequence_loss(scores: Scores, chosen: Selection, *, top_k: int, normalised: bool) -> Tensor:
    """Eq. 17 to 20 for each sequence, without alpha, averaged over the sequences."""
    losses = []
    for sequence, selection in zip(scores, chosen, strict=True):
        load = _relative_load(selection, len(sequence[0]), top_k)
        share = _mean_scores([sequence], normalised)
        losses.append(_sum([f * p for f, p in zip(load, share, strict=True)]))
    return _mean(losses)


def device_loss(
    scores: Scores, chosen: Selection, *, top_k: int, n_group: int, normalised: bool
) -> Tensor:
    """V2 eq. 26 to 28 without alpha_2: mean f and summed P of the experts of a device."""
    losses = []
    for sequence, selection in zip(scores, chosen, strict=True):
        load = _relative_load(selection, len(sequence[0]), top_k)
        share = _mean_scores([sequence], normalised)
        terms = []
        for device in groups_of(len(load), n_group):
            mean_load = sum(load[i] for i in device) / len(device)
            terms.append(mean_load * _sum([share[i] for i in device]))
        losses.append(_sum(terms))
    return _mean(losses)


def communication_loss(
    scores: Scores, chosen: Selection, *, n_group: int, topk_group: int, normalised: bool
) -> Tensor:
    """V2 eq. 29 to 31 without alpha_3: a token counts once for each device it is sent to."""
    losses = []
    for sequence, selection in zip(scores, chosen, strict=True):
        share = _mean_scores([sequence], normalised)
        terms = []
        for device in groups_of(len(sequence[0]), n_group):
            sent = sum(1 for experts in selection if any(i in device for i in experts))
            received = n_group / (topk_group * len(selection)) * sent
            terms.append(received * _sum([share[i] for i in device]))
        losses.append(_sum(terms))
    return _mean(losses)


def batch_loss(
    local_scores: Scores, batch_selection: Selection, *, top_k: int, normalised: bool
) -> Tensor:
    """Eq. 17 to 20 with T = all tokens of the global batch; P averages the local tokens."""
    tokens = [experts for sequence in batch_selection for experts in sequence]
    load = _relative_load(tokens, len(local_scores[0][0]), top_k)
    share = _mean_scores(local_scores, normalised)
    return _sum([f * p for f, p in zip(load, share, strict=True)])


def counts_of(selection: Selection, experts: int) -> list[int]:
    """Tokens sent to each expert."""
    return [sum(i in s for sequence in selection for s in sequence) for i in range(experts)]


def bias_moves(counts: Sequence[int], rule: str, gamma: float) -> list[float]:
    """What one optimizer step adds to each bias, in exact fractions.

    Algorithm 1 of arXiv 2408.15664: gamma * sign(mean - c_i); the same minus the mean of the signs;
    or gamma * (mean - c_i) / mean. Nobody was routed: nothing moves.
    """
    mean = Fraction(sum(counts), len(counts))
    errors = [mean - count for count in counts]
    signs = [Fraction((e > 0) - (e < 0)) for e in errors]
    if rule == "sign":
        moves = signs
    elif rule == "zero_mean_sign":
        moves = [sign - sum(signs) / len(signs) for sign in signs]
    elif rule == "proportional":
        moves = [error / mean if mean else Fraction(0) for error in errors]
    else:
        raise AssertionError(rule)
    return [float(Fraction(gamma) * move) for move in moves]


def _relative_load(tokens: list[set[int]], experts: int, top_k: int) -> list[float]:
    """f_i: N_r / (K_r T) times the number of tokens that chose expert i."""
    load = []
    for expert in range(experts):
        count = 0
        for chosen in tokens:
            if expert in chosen:
                count += 1
        load.append(experts / (top_k * len(tokens)) * count)
    return load


def _mean_scores(sequences: Scores, normalised: bool) -> list[Tensor]:
    """P_i: the mean over tokens of s'_i = s_i / sum_j s_j, or of s_i as it is."""
    tokens = [token for sequence in sequences for token in sequence]
    shares = []
    for expert in range(len(tokens[0])):
        terms = [token[expert] / (_sum(token) if normalised else 1) for token in tokens]
        shares.append(_mean(terms))
    return shares


def _cut(values: Sequence[float], count: int) -> Cut:
    order = sorted(range(len(values)), key=lambda i: -values[i])
    inside, outside = order[:count], order[count:]
    margin = values[inside[-1]] - values[outside[0]] if outside else float("inf")
    return Cut(set(inside), margin)


def _floats(token: list[Tensor]) -> list[float]:
    return [score.item() for score in token]


def _sum(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()


def _mean(values: Sequence[Tensor]) -> Tensor:
    return _sum(values) / len(values)
