"""Causal attention."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

# Longest sequence whose probabilities are kept: beyond it their memory outweighs the time saved.
LONGEST_KEPT = 512


def causal_attention(q_BHSd: Tensor, k_BHSd: Tensor, v_BHSV: Tensor, *, scale: float) -> Tensor:
    """softmax(scale q k^T) v over each token's past: [B, H, S, d] -> [B, H, S, V].

    torch's kernel, but on a CPU and for short sequences, where its backward pass is slow, plain
    batched products.
    """
    if q_BHSd.device.type == "cpu" and q_BHSd.shape[2] <= LONGEST_KEPT:
        out_BHSV: Tensor = _KeptAttention.apply(q_BHSd, k_BHSd, v_BHSV, scale)  # type: ignore[no-untyped-call]
        return out_BHSV
    return F.scaled_dot_product_attention(q_BHSd, k_BHSd, v_BHSV, is_causal=True, scale=scale)


def _halves(length: int) -> list[slice]:
    """The queries in two parts: those of the first need no keys of the second."""
    middle = (length + 1) // 2
    return [part for part in (slice(0, middle), slice(middle, length)) if part.start < part.stop]


class _KeptAttention(Function):
    """Keeps the probabilities of the forward pass."""

    @staticmethod
    def forward(ctx: Any, q_BHSd: Tensor, k_BHSd: Tensor, v_BHSV: Tensor, scale: float) -> Tensor:
        q, k, v = (x.flatten(0, 1) for x in (q_BHSd * scale, k_BHSd, v_BHSV))
        out, kept = torch.empty_like(v), []
        for part in _halves(q.shape[1]):
            past = slice(0, part.stop)
            scores = q[:, part] @ k[:, past].transpose(1, 2)
            square = scores[:, :, part]  # what lies left of it is past for all of these queries
            square += torch.full_like(square[0], float("-inf")).triu_(1)
            kept.append(scores.softmax(dim=-1))
            out[:, part] = kept[-1] @ v[:, past]
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scale = scale
        return out.view_as(v_BHSV)

    @staticmethod
    def backward(ctx: Any, grad_BHSV: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *kept = ctx.saved_tensors
        grad = grad_BHSV.flatten(0, 1)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for part, probabilities in zip(_halves(q.shape[1]), kept, strict=True):
            past = slice(0, part.stop)
            grad_v[:, past] += probabilities.transpose(1, 2) @ grad[:, part]
            grad_scores = torch.ops.aten._softmax_backward_data(
                grad[:, part] @ v[:, past].transpose(1, 2), probabilities, -1, q.dtype
            )
            grad_q[:, part] = grad_scores @ k[:, past]
            grad_k[:, past] += grad_scores.transpose(1, 2) @ q[:, part]
        shape = grad_BHSV.shape[:3]
        grad_q.mul_(ctx.scale)
        return grad_q.view(*shape, -1), grad_k.view(*shape, -1), grad_v.view(*shape, -1), None
