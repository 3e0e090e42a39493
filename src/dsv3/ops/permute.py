"""Local reordering of tokens by expert, and back.

Both directions are gathers, forward and backward: a token's K rows are read and summed in a fixed
order, where the gradient of plain indexing would scatter with additions.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


def expert_order(expert_ids_TK: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the T x K assignments by expert, stably.

    Returns `order_A` (the assignment t*K + k found in each sorted row) and `row_TK` (the sorted row
    of each assignment), int64.
    """
    order_A = expert_ids_TK.flatten().argsort(stable=True)
    row_A = torch.empty_like(order_A)
    row_A[order_A] = torch.arange(order_A.numel(), device=order_A.device)
    return order_A, row_A.view_as(expert_ids_TK)


def permute(x_TD: Tensor, order_A: Tensor, row_TK: Tensor) -> Tensor:
    """Copy each token into the rows of its experts: [T, D] -> [A, D], A = T x K."""
    rows_AD: Tensor = _Permute.apply(x_TD, order_A // row_TK.shape[1], row_TK)  # type: ignore[no-untyped-call]
    return rows_AD


def unpermute(rows_AD: Tensor, order_A: Tensor, row_TK: Tensor) -> Tensor:
    """Sum the K rows of each token: [A, D] -> [T, D]; the transpose of `permute`."""
    x_TD: Tensor = _Unpermute.apply(rows_AD, order_A // row_TK.shape[1], row_TK)  # type: ignore[no-untyped-call]
    return x_TD


def _sum_rows(rows_AD: Tensor, row_TK: Tensor) -> Tensor:
    if rows_AD.device.type == "cpu":
        return F.embedding_bag(row_TK, rows_AD, mode="sum")
    return rows_AD[row_TK].sum(dim=1)


class _Permute(Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, token_A: Tensor, row_TK: Tensor) -> Tensor:
        ctx.save_for_backward(row_TK)
        return x_TD.index_select(0, token_A)

    @staticmethod
    def backward(ctx: Any, grad_AD: Tensor) -> tuple[Tensor, None, None]:
        (row_TK,) = ctx.saved_tensors
        return _sum_rows(grad_AD.contiguous(), row_TK), None, None


class _Unpermute(Function):
    @staticmethod
    def forward(ctx: Any, rows_AD: Tensor, token_A: Tensor, row_TK: Tensor) -> Tensor:
        ctx.save_for_backward(token_A)
        return _sum_rows(rows_AD, row_TK)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, None, None]:
        (token_A,) = ctx.saved_tensors
        return grad_TD.index_select(0, token_A), None, None
