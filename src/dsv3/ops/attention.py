"""Causal attention."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Longest sequence whose probabilities are kept: beyond it their memory outweighs the time saved.
LONGEST_KEPT = 512


def causal_attention(q_BHSd: Tensor, k_BHSd: Tensor, v_BHSV: Tensor, *, scale: float) -> Tensor:
    """softmax(scale q k^T) v over each token's past: [B, H, S, d] -> [B, H, S, V].

    torch's kernel, but on a CPU and for short sequences, where its backward pass is slow, plain
    batched products.
    """
    if q_BHSd.device.type == "cpu" and q_BHSd.shape[2] <= LONGEST_KEPT:
        out: Tensor
        out, *_ = torch.ops.dsv3.kept_attention(
            q_BHSd * scale, k_BHSd.contiguous(), v_BHSV.contiguous()
        )
        return out
    return F.scaled_dot_product_attention(q_BHSd, k_BHSd, v_BHSV, is_causal=True, scale=scale)


def _halves(length: int) -> tuple[slice, slice]:
    """The queries in two parts: those of the first need no keys of the second."""
    middle = (length + 1) // 2
    return slice(0, middle), slice(middle, length)


# Operators, so that a compiled model calls these products and torch's own softmax, which is faster
# than the code a compiler writes for it.
@torch.library.custom_op("dsv3::kept_attention", mutates_args=())
def _attend(q_BHSd: Tensor, k_BHSd: Tensor, v_BHSV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of scaled queries, and the probabilities [B x H, .., ..] of either half."""
    q, k, v = (x.flatten(0, 1) for x in (q_BHSd, k_BHSd, v_BHSV))
    out, kept = _empty_heads_last(v_BHSV), []
    for part in _halves(q.shape[1]):
        past = slice(0, part.stop)
        scores = q[:, part] @ k[:, past].transpose(1, 2)
        square = scores[:, :, part]  # what lies left of it is past for all of these queries
        square += torch.full_like(square[0], float("-inf")).triu_(1)
        kept.append(scores.softmax(dim=-1))
        out[:, :, part] = (kept[-1] @ v[:, past]).unflatten(0, out.shape[:2])
    return out, kept[0], kept[1]


def _empty_heads_last(x_BHSV: Tensor) -> Tensor:
    """Room for [B, H, S, V] that lies in memory as [B, S, H, V], as the next product wants it."""
    B, H, S, V = x_BHSV.shape
    return x_BHSV.new_empty(B, S, H, V).transpose(1, 2)


@torch.library.custom_op("dsv3::kept_attention_backward", mutates_args=())
def _attend_backward(
    grad_BHSV: Tensor, q_BHSd: Tensor, k_BHSd: Tensor, v_BHSV: Tensor, early: Tensor, late: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the scaled queries, the keys and the values."""
    grad, q, k, v = (x.flatten(0, 1) for x in (grad_BHSV, q_BHSd, k_BHSd, v_BHSV))
    grad_q = torch.empty_like(q)
    early_part, late_part = _halves(q.shape[1])

    def of_part(part: slice, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        past = slice(0, part.stop)
        grad_scores = torch.ops.aten._softmax_backward_data(
            grad[:, part] @ v[:, past].transpose(1, 2), probabilities, -1, q.dtype
        )
        grad_q[:, part] = grad_scores @ k[:, past]
        return grad_scores.transpose(1, 2) @ q[:, part], probabilities.transpose(1, 2) @ grad[
            :, part
        ]

    grad_k, grad_v = of_part(late_part, late)  # the late queries see every key
    more_k, more_v = of_part(early_part, early)
    grad_k[:, early_part] += more_k
    grad_v[:, early_part] += more_v
    return grad_q.view_as(q_BHSd), grad_k.view_as(k_BHSd), grad_v.view_as(v_BHSV)


@_attend.register_fake
def _(q_BHSd: Tensor, k_BHSd: Tensor, v_BHSV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    early, late = _halves(q_BHSd.shape[2])
    heads = q_BHSd.shape[0] * q_BHSd.shape[1]
    return (
        _empty_heads_last(v_BHSV),
        q_BHSd.new_empty(heads, early.stop, early.stop),
        q_BHSd.new_empty(heads, late.stop - late.start, late.stop),
    )


@_attend_backward.register_fake
def _(
    grad_BHSV: Tensor, q_BHSd: Tensor, k_BHSd: Tensor, v_BHSV: Tensor, early: Tensor, late: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        q_BHSd.new_empty(q_BHSd.shape),
        k_BHSd.new_empty(k_BHSd.shape),
        v_BHSV.new_empty(v_BHSV.shape),
    )


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.set_materialize_grads(False)  # none comes for the probabilities


def _backward(
    ctx: Any, grad_BHSV: Tensor | None, *_: None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if grad_BHSV is None:
        return None, None, None
    grads: tuple[Tensor, Tensor, Tensor] = torch.ops.dsv3.kept_attention_backward(
        grad_BHSV, *ctx.saved_tensors
    )
    return grads


_attend.register_autograd(_backward, setup_context=_keep)
