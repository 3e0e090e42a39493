"""Cross entropy of a linear head without a full copy of the logits."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from dsv3.ops.precision import at_least_fp32

# Logits held at once: this many, but not fewer than so many rows, to keep the products efficient.
CHUNK_ELEMENTS = 1 << 22
CHUNK_ROWS = 256


def linear_cross_entropy(hidden_TD: Tensor, weight_XD: Tensor, labels_T: Tensor) -> Tensor:
    """Mean cross entropy of `hidden @ weight^T` against `labels`, an FP32 scalar, natural log.

    The head runs over chunks of rows. Their gradients are made on the way, so that no logits are
    kept for the backward pass, which only scales them by the gradient from above.
    """
    if not torch.is_grad_enabled():
        return linear_token_losses(hidden_TD, weight_XD, labels_T).mean()
    loss: Tensor = _LinearCrossEntropy.apply(hidden_TD, weight_XD, labels_T)  # type: ignore[no-untyped-call]
    return loss


def plain_linear_cross_entropy(hidden_TD: Tensor, weight_XD: Tensor, labels_T: Tensor) -> Tensor:
    """The same from the definition, with all logits at once; what the other is tested against."""
    return F.cross_entropy(at_least_fp32(F.linear(hidden_TD, weight_XD)), labels_T)


@torch.no_grad()
def linear_token_losses(hidden_TD: Tensor, weight_XD: Tensor, labels_T: Tensor) -> Tensor:
    """Cross entropy of every token, FP32 [T]; for evaluation, without a gradient."""
    losses = [
        F.cross_entropy(
            at_least_fp32(hidden_TD[rows] @ weight_XD.t()), labels_T[rows], reduction="none"
        )
        for rows in _chunks(hidden_TD.shape[0], weight_XD.shape[0])
    ]
    return torch.cat(losses)


@torch.no_grad()
def linear_best_tokens(hidden_TD: Tensor, weight_XD: Tensor) -> Tensor:
    """The token of the largest logit, int64 [T]."""
    best = [
        (hidden_TD[rows] @ weight_XD.t()).argmax(dim=1)
        for rows in _chunks(hidden_TD.shape[0], weight_XD.shape[0])
    ]
    return torch.cat(best)


def loss_and_gradient(logits_TX: Tensor, labels_T: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the losses, and its gradient softmax - one hot.

    Both are made in FP32; the gradient is rounded to the type of the logits at the end only.
    """
    wide = torch.promote_types(logits_TX.dtype, torch.float32)
    gold_T1 = labels_T.unsqueeze(1)
    probability = logits_TX.softmax(dim=1, dtype=wide)
    # log sum exp, from the largest logit and its probability, which is at least 1 / X.
    top = logits_TX.amax(dim=1).to(wide) - probability.amax(dim=1).log()
    loss = (top - logits_TX.gather(1, gold_T1).squeeze(1)).sum()
    probability.scatter_add_(1, gold_T1, probability.new_full((1, 1), -1.0).expand_as(gold_T1))
    return loss, probability.to(logits_TX.dtype)


def _chunks(rows: int, vocab_size: int) -> Iterator[slice]:
    step = max(CHUNK_ROWS, CHUNK_ELEMENTS // vocab_size)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in the type of `total`."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, weight_XD: Tensor, labels_T: Tensor) -> Tensor:
        mean = 1.0 / hidden_TD.shape[0]
        wide = torch.promote_types(weight_XD.dtype, torch.float32)
        loss = hidden_TD.new_zeros((), dtype=wide)
        grad_hidden = torch.empty_like(hidden_TD)
        grad_weight = torch.zeros_like(weight_XD, dtype=wide)
        for rows in _chunks(hidden_TD.shape[0], weight_XD.shape[0]):
            chunk = hidden_TD[rows]
            chunk_loss, grad_logits = loss_and_gradient(chunk @ weight_XD.t(), labels_T[rows])
            loss += chunk_loss
            torch.mm(grad_logits, weight_XD, out=grad_hidden[rows])
            _add_product(grad_weight, grad_logits.t(), chunk)
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight_XD.dtype))
        ctx.mean = mean
        return loss * mean

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad * ctx.mean
        return grad_hidden * scale, grad_weight * scale, None
