"""Grouped products: each expert's weights times its own run of rows.

Registered as operators, so that a compiled model calls them without looking at the numbers of rows,
which change with every batch. Rows beyond those of the last expert are neither read nor written.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def grouped_product(rows_RI: Tensor, weights_eIO: Tensor, rows_per_expert_e: Tensor) -> Tensor:
    """Rows of expert i times its matrix: [R, I] x [e, I, O] -> [R, O]; differentiable.

    An expert without rows gets a gradient of zero.
    """
    out_RO: Tensor = torch.ops.dsv3.grouped_product(rows_RI, weights_eIO, rows_per_expert_e)
    return out_RO


def grouped_outer(left_RO: Tensor, right_RI: Tensor, rows_per_expert_e: Tensor) -> Tensor:
    """left_i^T right_i over the rows of each expert: [e, O, I]."""
    out_eOI: Tensor = torch.ops.dsv3.grouped_outer(left_RO, right_RI, rows_per_expert_e)
    return out_eOI


@torch.library.custom_op("dsv3::grouped_product", mutates_args=())
def _product(rows: Tensor, weights: Tensor, rows_per_expert: Tensor) -> Tensor:
    if _has_kernel(rows, weights):
        return F.grouped_mm(rows, weights, offs=_ends(rows_per_expert))
    out = rows.new_empty(rows.shape[0], weights.shape[2])
    runs = zip(_runs(rows, rows_per_expert), weights, _runs(out, rows_per_expert), strict=True)
    for run, weight, into in runs:
        torch.mm(run, weight, out=into)
    return out


@torch.library.custom_op("dsv3::grouped_outer", mutates_args=())
def _outer(left: Tensor, right: Tensor, rows_per_expert: Tensor) -> Tensor:
    if _has_kernel(left, right):
        return F.grouped_mm(left.t(), right, offs=_ends(rows_per_expert))
    out = left.new_empty(rows_per_expert.shape[0], left.shape[1], right.shape[1])
    runs = zip(_runs(left, rows_per_expert), _runs(right, rows_per_expert), out, strict=True)
    for left_run, right_run, into in runs:
        torch.mm(left_run.t(), right_run, out=into)
    return out


def _has_kernel(*factors: Tensor) -> bool:
    """Whether torch's grouped product takes these: not FP64, and rows of whole 16 bytes."""
    return all(
        factor.dtype in (torch.float32, torch.bfloat16)
        and all(stride * factor.itemsize % 16 == 0 or stride == 1 for stride in factor.stride())
        for factor in factors
    )


def _ends(rows_per_expert: Tensor) -> Tensor:
    """The row after each expert's last."""
    return rows_per_expert.cumsum(0, dtype=torch.int32)


def _runs(rows: Tensor, rows_per_expert: Tensor) -> tuple[Tensor, ...]:
    """The rows of each expert."""
    counts = rows_per_expert.tolist()
    runs: tuple[Tensor, ...] = rows[: sum(counts)].split(counts)
    return runs


@_product.register_fake
def _(rows: Tensor, weights: Tensor, rows_per_expert: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], weights.shape[2])


@_outer.register_fake
def _(left: Tensor, right: Tensor, rows_per_expert: Tensor) -> Tensor:
    return left.new_empty(rows_per_expert.shape[0], left.shape[1], right.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _product_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    rows, weights, rows_per_expert = ctx.saved_tensors
    grad = grad.contiguous()
    # The outer product is taken in the layout the weights are stored in, not in that of the view.
    grad_weights = grouped_outer(grad, rows, rows_per_expert).transpose(1, 2)
    return grouped_product(grad, weights.transpose(1, 2), rows_per_expert), grad_weights, None


_product.register_autograd(_product_backward, setup_context=_keep)
