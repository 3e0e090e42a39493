"""The routed experts' SwiGLU networks as grouped products over rows sorted by expert."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from dsv3.ops.precision import at_least_fp32


def grouped_mlp(
    rows_RD: Tensor,
    row_weights_R: Tensor,
    tokens_per_expert_e: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
) -> Tensor:
    """Apply expert i to its run of rows and scale each row: w * down_i(silu(gate_i x) * up_i x).

    `gate_up_proj` is [e, 2F, D] with the gate half first, `down_proj` [e, D, F]; the result is
    [R, D]. The routing weight acts at the width F, where it is cheapest, in FP32. Any number of
    experts may have no rows: their weights get a gradient of zero, never none.
    """
    out_RD: Tensor = _GroupedMlp.apply(  # type: ignore[no-untyped-call]
        rows_RD, row_weights_R, tokens_per_expert_e.tolist(), gate_up_proj, down_proj
    )
    return out_RD


def weighted_swiglu(gate_up: Tensor, row_weights_R: Tensor) -> Tensor:
    """silu(gate) * up * weight, [R, 2F] -> [R, F] in the type of `gate_up`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return (F.silu(gate) * up * row_weights_R.unsqueeze(-1)).to(gate_up.dtype)


def weighted_swiglu_backward(
    gate_up: Tensor, row_weights_R: Tensor, grad_RF: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `gate_up` and of the row weights, and the recomputed output."""
    gate, up = at_least_fp32(gate_up).chunk(2, dim=-1)
    sigmoid = gate.sigmoid()
    silu = gate * sigmoid
    weight = row_weights_R.unsqueeze(-1)
    plain = silu * up
    grad_weight_R = (grad_RF * plain).sum(dim=-1).to(row_weights_R.dtype)
    scaled = grad_RF * weight
    grad_gate = scaled * up * (sigmoid + silu * (1 - sigmoid))
    grad_gate_up = torch.cat((grad_gate, scaled * silu), dim=-1).to(gate_up.dtype)
    return grad_gate_up, grad_weight_R, (plain * weight).to(gate_up.dtype)


def _grouped_product(rows: Tensor, weights: Tensor, counts: list[int]) -> Tensor:
    """Rows of expert i times `weights[i]` [in, out]."""
    out = rows.new_empty(rows.shape[0], weights.shape[2])
    groups = zip(rows.split(counts), weights.unbind(), out.split(counts), counts, strict=True)
    for group, weight, into, count in groups:
        if count:
            torch.mm(group, weight, out=into)
    return out


def _grouped_outer(left: Tensor, right: Tensor, counts: list[int]) -> Tensor:
    """left_i^T right_i of each expert's rows: [e, left width, right width], zero without rows."""
    out = left.new_empty(len(counts), left.shape[1], right.shape[1])
    groups = zip(left.split(counts), right.split(counts), out.unbind(), counts, strict=True)
    for left_i, right_i, into, count in groups:
        if count:
            torch.mm(left_i.t(), right_i, out=into)
        else:
            into.zero_()
    return out


class _GroupedMlp(Function):
    """Keeps the rows and gate_up; SwiGLU's output is recomputed from the latter."""

    @staticmethod
    def forward(
        ctx: Any,
        rows_RD: Tensor,
        row_weights_R: Tensor,
        counts: list[int],
        gate_up_proj: Tensor,
        down_proj: Tensor,
    ) -> Tensor:
        gate_up = _grouped_product(rows_RD, gate_up_proj.transpose(1, 2), counts)
        ctx.save_for_backward(rows_RD, row_weights_R, gate_up, gate_up_proj, down_proj)
        ctx.counts = counts
        activated_RF = weighted_swiglu(gate_up, row_weights_R)
        return _grouped_product(activated_RF, down_proj.transpose(1, 2), counts)

    @staticmethod
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor | None, ...]:
        rows_RD, row_weights_R, gate_up, gate_up_proj, down_proj = ctx.saved_tensors
        counts: list[int] = ctx.counts
        grad_RD = grad_RD.contiguous()
        grad_RF = _grouped_product(grad_RD, down_proj, counts)
        grad_gate_up, grad_weights_R, activated_RF = weighted_swiglu_backward(
            gate_up, row_weights_R, grad_RF
        )
        grad_down = _grouped_outer(grad_RD, activated_RF, counts)
        grad_gate_up_proj = _grouped_outer(grad_gate_up, rows_RD, counts)
        grad_rows_RD = _grouped_product(grad_gate_up, gate_up_proj, counts)
        return grad_rows_RD, grad_weights_R, None, grad_gate_up_proj, grad_down
