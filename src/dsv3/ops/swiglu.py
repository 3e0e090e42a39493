"""SwiGLU of an expert's rows times their routing weights, keeping nothing but its inputs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


def weighted_swiglu(gate_up_RH: Tensor, weights_R: Tensor) -> Tensor:
    """w * silu(gate) * up for rows of [gate, up]: [R, 2F] to [R, F], in the type of the rows.

    The backward pass makes it again (report section 3.2.3) and sums a weight's gradient in FP32.
    """
    out: Tensor = _WeightedSwiglu.apply(gate_up_RH, weights_R)  # type: ignore[no-untyped-call]
    return out


class _WeightedSwiglu(Function):
    @staticmethod
    def forward(ctx: Any, gate_up_RH: Tensor, weights_R: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_RH, weights_R)
        gate, up = gate_up_RH.chunk(2, dim=-1)
        return F.silu(gate).mul_(up).mul_(_column(weights_R, gate_up_RH))

    @staticmethod
    def backward(ctx: Any, grad_RF: Tensor) -> tuple[Tensor, Tensor]:
        gate_up_RH, weights_R = ctx.saved_tensors
        gate, up = gate_up_RH.chunk(2, dim=-1)
        silu = F.silu(gate)
        d_weights_R = (grad_RF * (silu * up)).sum(dim=-1, dtype=weights_R.dtype)
        grad_RF = grad_RF * _column(weights_R, gate_up_RH)
        d_gate = torch.ops.aten.silu_backward(grad_RF * up, gate)
        return torch.cat((d_gate, grad_RF.mul_(silu)), dim=-1), d_weights_R


def _column(weights_R: Tensor, rows: Tensor) -> Tensor:
    return weights_R.to(rows.dtype).unsqueeze(-1)
