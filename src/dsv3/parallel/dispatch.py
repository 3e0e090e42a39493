"""Token dispatchers: how tokens reach the experts and come back."""

from typing import NamedTuple

from torch import Tensor

from dsv3.ops.permute import expert_order, permute, unpermute
from dsv3.ops.routing import count_tokens


class LocalHandle(NamedTuple):
    """Where `dispatch` put the rows; see `expert_order`."""

    order_A: Tensor
    row_TK: Tensor


class LocalDispatcher:
    """All experts live in this process: a reordering, dropless, without communication."""

    def __init__(self, n_routed_experts: int) -> None:
        self.n_routed_experts = n_routed_experts

    def dispatch(
        self, x_TD: Tensor, topk_expert_ids_TK: Tensor, topk_scores_TK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, LocalHandle]:
        """Copy each token to the rows of its experts, sorted by expert."""
        handle = LocalHandle(*expert_order(topk_expert_ids_TK))
        rows_RD = permute(x_TD, *handle)
        row_weights_R = topk_scores_TK.flatten()[handle.order_A]
        tokens_per_expert_E = count_tokens(topk_expert_ids_TK, self.n_routed_experts)
        return rows_RD, row_weights_R, tokens_per_expert_E, handle

    def combine(self, rows_RD: Tensor, handle: LocalHandle) -> Tensor:
        """Sum the weighted rows of each token."""
        return unpermute(rows_RD, *handle)
