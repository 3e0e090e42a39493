"""Local reordering of tokens by expert, and back.

Both directions are gathers, forward and backward: a token's K rows are read and summed in a fixed
order, where the gradient of plain indexing would scatter with additions.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def expert_rows(
    expert_ids_TK: Tensor, tokens_per_expert_E: Tensor, *, row_multiple: int
) -> tuple[Tensor, Tensor]:
    """Place the T x K assignments in rows sorted by expert, in order of tokens within an expert.

    Returns the row of each assignment, int64 [T, K], and the rows of each expert, int64 [E]: its
    tokens rounded up to `row_multiple`. The rows between hold no assignment.
    """
    order_A = expert_ids_TK.flatten().argsort(stable=True)
    rows_per_expert_E = (tokens_per_expert_E + row_multiple - 1) // row_multiple * row_multiple
    filled_E = rows_per_expert_E - tokens_per_expert_E
    before_E = filled_E.cumsum(0) - filled_E
    row_A = torch.arange(order_A.numel(), device=order_A.device)
    row_A = row_A + before_E[expert_ids_TK.flatten()[order_A]]
    return torch.empty_like(order_A).scatter_(0, order_A, row_A).view_as(
        expert_ids_TK
    ), rows_per_expert_E


def token_of_rows(row_TK: Tensor, num_rows: int) -> Tensor:
    """The token in each row, int64 [R]; token 0 in rows without an assignment."""
    token_TK = torch.arange(row_TK.shape[0], device=row_TK.device).unsqueeze(1).expand_as(row_TK)
    return row_TK.new_zeros(num_rows).scatter_(0, row_TK.flatten(), token_TK.flatten())


def permute(x_TD: Tensor, token_R: Tensor, row_TK: Tensor) -> Tensor:
    """Copy each token into the rows of its experts: [T, D] -> [R, D]."""
    rows_RD: Tensor = torch.ops.dsv3.permute(x_TD, token_R, row_TK)
    return rows_RD


def unpermute(rows_RD: Tensor, token_R: Tensor, row_TK: Tensor) -> Tensor:
    """Sum the K rows of each token: [R, D] -> [T, D].

    Rows without an assignment are not read; their gradient is that of token 0, for a caller who
    has multiplied them with zero.
    """
    x_TD: Tensor = torch.ops.dsv3.unpermute(rows_RD, token_R, row_TK)
    return x_TD


def permute_weights(scores_TK: Tensor, row_TK: Tensor, num_rows: int) -> Tensor:
    """The weight of each row, [R]; zero in rows without an assignment."""
    weights_R = scores_TK.new_zeros(num_rows)
    return weights_R.scatter(0, row_TK.flatten(), scores_TK.flatten())


# Operators, each the gradient of the other, so that a compiled model too calls torch's kernels,
# which copy whole rows.
@torch.library.custom_op("dsv3::permute", mutates_args=())
def _permute(x_TD: Tensor, token_R: Tensor, row_TK: Tensor) -> Tensor:
    return x_TD.index_select(0, token_R)


@torch.library.custom_op("dsv3::unpermute", mutates_args=())
def _unpermute(rows_RD: Tensor, token_R: Tensor, row_TK: Tensor) -> Tensor:
    if rows_RD.device.type == "cpu":
        return F.embedding_bag(row_TK, rows_RD.contiguous(), mode="sum")
    return rows_RD[row_TK].sum(dim=1)


@_permute.register_fake
def _(x_TD: Tensor, token_R: Tensor, row_TK: Tensor) -> Tensor:
    return x_TD.new_empty(token_R.shape[0], x_TD.shape[1])


@_unpermute.register_fake
def _(rows_RD: Tensor, token_R: Tensor, row_TK: Tensor) -> Tensor:
    return rows_RD.new_empty(row_TK.shape[0], rows_RD.shape[1])


def _keep_places(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _permute_backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None, None]:
    return unpermute(grad_RD, *ctx.saved_tensors), None, None


def _unpermute_backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, None, None]:
    return permute(grad_TD, *ctx.saved_tensors), None, None


_permute.register_autograd(_permute_backward, setup_context=_keep_places)
_unpermute.register_autograd(_unpermute_backward, setup_context=_keep_places)
