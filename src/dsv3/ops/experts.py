"""The routed experts' SwiGLU networks, over rows sorted by expert."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3.ops.grouped import grouped_product


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
    have no rows: their weights get a gradient of zero, never none. Rows beyond those of the last
    expert are neither read nor written.
    """
    inputs = (rows_RD, row_weights_R, rows_per_expert_e, gate_up_proj, down_proj)
    if torch.compiler.is_compiling():
        return fusible_grouped_mlp(*inputs)
    out_RD: Tensor
    out_RD, _ = torch.ops.dsv3.grouped_mlp(*inputs)
    return out_RD


def fusible_grouped_mlp(
    rows_RD: Tensor,
    row_weights_R: Tensor,
    rows_per_expert_e: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
) -> Tensor:
    """The same with SwiGLU in the open, for a compiler to fuse, forward and backward."""
    gate_up = grouped_product(rows_RD, gate_up_proj.transpose(1, 2), rows_per_expert_e)
    gate, up = gate_up.chunk(2, dim=-1)
    activated_RF = F.silu(gate) * up * row_weights_R.unsqueeze(-1).to(gate_up.dtype)
    return grouped_product(activated_RF, down_proj.transpose(1, 2), rows_per_expert_e)


# Without a compiler: one expert after the other through the whole network, while its rows are in
# the cache, and its SwiGLU made again in the backward pass.
@torch.library.custom_op("dsv3::grouped_mlp", mutates_args=())
def _forward(
    rows: Tensor, row_weights: Tensor, rows_per_expert: Tensor, gate_up_proj: Tensor, down: Tensor
) -> tuple[Tensor, Tensor]:
    """The result, and gate_up [R, 2F] for the backward pass."""
    counts = rows_per_expert.tolist()
    out = torch.empty_like(rows)
    gate_up = rows.new_empty(rows.shape[0], gate_up_proj.shape[1])
    split = (_runs(x, counts) for x in (rows, _column(row_weights, rows), gate_up, out))
    for x, weight, h, y, up_proj, down_proj in zip(*split, gate_up_proj, down, strict=True):
        torch.mm(x, up_proj.t(), out=h)
        gate, up = h.chunk(2, dim=1)
        torch.mm(F.silu(gate.contiguous()).mul_(up).mul_(weight), down_proj.t(), out=y)
    return out, gate_up


@torch.library.custom_op("dsv3::grouped_mlp_backward", mutates_args=())
def _gradients(
    grad: Tensor,
    rows: Tensor,
    row_weights: Tensor,
    rows_per_expert: Tensor,
    gate_up_proj: Tensor,
    down: Tensor,
    gate_up: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the rows, their weights and both projections."""
    counts = rows_per_expert.tolist()
    grads = [torch.empty_like(x) for x in (rows, row_weights, gate_up_proj, down)]
    weight = _column(row_weights, rows)
    split = (_runs(x, counts) for x in (grad, rows, weight, gate_up, grads[0], grads[1]))
    for dy, x, w, h, dx, dw, up_proj, down_proj, d_up_proj, d_down_proj in zip(
        *split, gate_up_proj, down, grads[2], grads[3], strict=True
    ):
        gate, up = (half.contiguous() for half in h.chunk(2, dim=1))
        silu = F.silu(gate)
        activated = silu * up
        d_activated = dy @ down_proj
        dw.copy_((d_activated * activated).sum(dim=1, dtype=dw.dtype))
        d_activated.mul_(w)
        d_silu = d_activated * up
        dh = torch.cat((torch.ops.aten.silu_backward(d_silu, gate), d_activated.mul_(silu)), dim=1)
        torch.mm(dy.t(), activated.mul_(w), out=d_down_proj)
        torch.mm(dh.t(), x, out=d_up_proj)
        torch.mm(dh, up_proj, out=dx)
    return grads[0], grads[1], grads[2], grads[3]


def _runs(rows: Tensor, counts: list[int]) -> tuple[Tensor, ...]:
    """The rows of each expert."""
    runs: tuple[Tensor, ...] = rows[: sum(counts)].split(counts)
    return runs


def _column(row_weights: Tensor, rows: Tensor) -> Tensor:
    return row_weights.to(rows.dtype).unsqueeze(1)


@_forward.register_fake
def _(
    rows: Tensor, row_weights: Tensor, rows_per_expert: Tensor, gate_up_proj: Tensor, down: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rows), rows.new_empty(rows.shape[0], gate_up_proj.shape[1])


@_gradients.register_fake
def _(
    grad: Tensor,
    rows: Tensor,
    row_weights: Tensor,
    rows_per_expert: Tensor,
    gate_up_proj: Tensor,
    down: Tensor,
    gate_up: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = (rows, row_weights, gate_up_proj, down)
    return tuple(torch.empty_like(each) for each in inputs)  # type: ignore[return-value]


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.set_materialize_grads(False)  # none comes for gate_up


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    grad_rows, grad_weights, grad_gate_up_proj, grad_down = torch.ops.dsv3.grouped_mlp_backward(
        grad.contiguous(), *ctx.saved_tensors
    )
    return grad_rows, grad_weights, None, grad_gate_up_proj, grad_down


_forward.register_autograd(_backward, setup_context=_keep)
