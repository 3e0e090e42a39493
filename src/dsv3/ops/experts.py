"""The routed experts' SwiGLU networks, over rows sorted by expert."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from dsv3.ops.grouped import grouped_outer, grouped_product


def grouped_mlp(
    rows_RD: Tensor,
    row_weights_R: Tensor,
    rows_per_expert_e: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
) -> Tensor:
    """Apply expert i to its run of rows and scale each row: w * down_i(silu(gate_i x) * up_i x).

    `gate_up_proj` is [e, 2F, D] with the gate half first, `down_proj` [e, D, F]; the result is
    [R, D]. The routing weight acts at the width F, where it is cheapest. Any number of experts may
    have no rows: their weights get a gradient of zero, never none.
    """
    inputs = (rows_RD, row_weights_R, rows_per_expert_e, gate_up_proj, down_proj)
    if torch.compiler.is_compiling():
        return plain_grouped_mlp(*inputs)
    out_RD: Tensor = _GroupedMlp.apply(*inputs)  # type: ignore[no-untyped-call]
    return out_RD


def plain_grouped_mlp(
    rows_RD: Tensor,
    row_weights_R: Tensor,
    rows_per_expert_e: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
) -> Tensor:
    """The same without a gradient of its own: for a compiler, which fuses better than we do."""
    gate_up = grouped_product(rows_RD, gate_up_proj.transpose(1, 2), rows_per_expert_e)
    gate, up = gate_up.chunk(2, dim=-1)
    activated_RF = F.silu(gate) * up * row_weights_R.unsqueeze(-1).to(gate_up.dtype)
    return grouped_product(activated_RF, down_proj.transpose(1, 2), rows_per_expert_e)


class _GroupedMlp(Function):
    """Keeps the rows and gate_up, and makes SwiGLU's output again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        rows_RD: Tensor,
        row_weights_R: Tensor,
        rows_per_expert_e: Tensor,
        gate_up_proj: Tensor,
        down_proj: Tensor,
    ) -> Tensor:
        gate_up = grouped_product(rows_RD, gate_up_proj.transpose(1, 2), rows_per_expert_e)
        ctx.save_for_backward(
            rows_RD, row_weights_R, rows_per_expert_e, gate_up_proj, down_proj, gate_up
        )
        gate, up = gate_up.chunk(2, dim=-1)
        weight = row_weights_R.unsqueeze(-1).to(gate_up.dtype)
        activated_RF = F.silu(gate.contiguous()).mul_(up).mul_(weight)
        return grouped_product(activated_RF, down_proj.transpose(1, 2), rows_per_expert_e)

    @staticmethod
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor | None, ...]:
        rows_RD, row_weights_R, rows_per_expert_e, gate_up_proj, down_proj, gate_up = (
            ctx.saved_tensors
        )
        grad_RF = grouped_product(grad_RD.contiguous(), down_proj, rows_per_expert_e)
        grad_gate_up, grad_weights_R, activated_RF = _swiglu_backward(
            gate_up, row_weights_R, grad_RF
        )
        return (
            grouped_product(grad_gate_up, gate_up_proj, rows_per_expert_e),
            grad_weights_R,
            None,
            grouped_outer(grad_gate_up, rows_RD, rows_per_expert_e),
            grouped_outer(grad_RD, activated_RF, rows_per_expert_e),
        )


def _swiglu_backward(
    gate_up: Tensor, row_weights_R: Tensor, grad_RF: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of gate_up and of the row weights, and SwiGLU's weighted output."""
    gate, up = (half.contiguous() for half in gate_up.chunk(2, dim=-1))
    weight = row_weights_R.unsqueeze(-1).to(gate_up.dtype)
    silu = F.silu(gate)
    plain = silu * up
    grad_weights_R = (grad_RF * plain).sum(dim=-1, dtype=row_weights_R.dtype)
    scaled = grad_RF * weight
    grad_gate_up = torch.empty_like(gate_up)
    grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
    torch.mul(scaled, silu, out=grad_up)
    grad_gate.copy_(torch.ops.aten.silu_backward(scaled.mul_(up), gate))
    return grad_gate_up, grad_weights_R, plain.mul_(weight)
