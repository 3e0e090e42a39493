"""Multi-token prediction as report eq. 21 to 25 print it, one position at a time.

Positions count from 0: the input holds t_0 .. t_(T-1), `labels[i]` is t_(i+1). Module k reads, at
position i, the state of depth k-1 there and the embedding of t_(i+k), and predicts t_(i+k+1).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Module(NamedTuple):
    """What one module owns; `block` maps [B, T-k, D] to [B, T-k, D]."""

    enorm: Tensor
    hnorm: Tensor
    eh_proj: Tensor
    head_norm: Tensor
    block: Callable[[Tensor], Tensor]


def rms_norm(x_D: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    return x_D / torch.sqrt((x_D * x_D).sum() / len(x_D) + eps) * weight_D


def states(
    first_BSD: Tensor, ids_BS: Tensor, embedding_XD: Tensor, modules: Sequence[Module], eps: float
) -> list[Tensor]:
    """h^k of every module, [B, T-k, D] (eq. 21, 22); the embedding half comes first.

    The report prints [state ; embedding]; the released weights of the projection are laid out for
    [embedding ; state], the same function up to a permutation of its columns.
    """
    before, out = first_BSD, []
    for k, module in enumerate(modules, start=1):
        sequences = []
        for b in range(ids_BS.shape[0]):
            row = []
            for i in range(ids_BS.shape[1] - k):
                token = embedding_XD[int(ids_BS[b, i + k])]
                halves = [
                    rms_norm(token, module.enorm, eps),
                    rms_norm(before[b, i], module.hnorm, eps),
                ]
                row.append(module.eh_proj @ torch.cat(halves))
            sequences.append(torch.stack(row))
        before = module.block(torch.stack(sequences))
        out.append(before)
    return out


def logits(state_BSD: Tensor, module: Module, head_XD: Tensor, eps: float) -> Tensor:
    """OutHead(h^k) (eq. 23), behind the module's own norm: [B, T-k, X]."""
    return torch.stack(
        [
            torch.stack([head_XD @ rms_norm(h_D, module.head_norm, eps) for h_D in state_SD])
            for state_SD in state_BSD
        ]
    )


def losses(
    state_of: Sequence[Tensor],
    labels_BS: Tensor,
    modules: Sequence[Module],
    head_XD: Tensor,
    eps: float,
) -> list[Tensor]:
    """L_MTP^k of every module (eq. 24): T-k terms a sequence, divided by T."""
    length, out = labels_BS.shape[1], []
    for k, (state_BSD, module) in enumerate(zip(state_of, modules, strict=True), start=1):
        logits_BSX = logits(state_BSD, module, head_XD, eps)
        sequences = []
        for b in range(labels_BS.shape[0]):
            terms = []
            for i in range(length - k):
                target = int(labels_BS[b, i + k])
                terms.append(-logits_BSX[b, i].log_softmax(-1)[target])
            sequences.append(torch.stack(terms).sum() / length)
        out.append(torch.stack(sequences).mean())
    return out


def acceptance(main_logits_BSX: Tensor, logits_of: Sequence[Tensor]) -> list[float]:
    """How often module k's best token is the main model's best token for the same target.

    t_(i+k+1) is predicted by module k at position i and by the main model at position i + k.
    """
    out = []
    batch, length = main_logits_BSX.shape[:2]
    for k, logits_BSX in enumerate(logits_of, start=1):
        hits = [
            int(logits_BSX[b, i].argmax()) == int(main_logits_BSX[b, i + k].argmax())
            for b in range(batch)
            for i in range(length - k)
        ]
        out.append(sum(hits) / len(hits))
    return out
