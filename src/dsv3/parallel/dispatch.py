"""Token dispatchers: how tokens reach the experts and come back."""

from typing import NamedTuple

from torch import Tensor

from dsv3.ops.permute import expert_rows, permute, permute_weights, token_of_rows, unpermute
from dsv3.ops.routing import count_tokens


class LocalHandle(NamedTuple):
    """Where `dispatch` put the rows: the token of each row, the rows of each token."""

    token_R: Tensor
    row_TK: Tensor


class LocalDispatcher:
    """All experts live in this process: a reordering, dropless, without communication."""

    def __init__(self, n_routed_experts: int) -> None:
        self.n_routed_experts = n_routed_experts

    def dispatch(
        self,
        x_TD: Tensor,
        topk_expert_ids_TK: Tensor,
        topk_scores_TK: Tensor,
        *,
        row_multiple: int,
    ) -> tuple[Tensor, Tensor, Tensor, LocalHandle]:
        """Copy each token to the rows of its experts; rows that fill up an expert weigh zero."""
        tokens_per_expert_E = count_tokens(topk_expert_ids_TK, self.n_routed_experts)
        row_TK, rows_per_expert_E = expert_rows(
            topk_expert_ids_TK, tokens_per_expert_E, row_multiple=row_multiple
        )
        # As many as there could be, not as there are: known without waiting for the device.
        num_rows = topk_expert_ids_TK.numel() + self.n_routed_experts * (row_multiple - 1)
        handle = LocalHandle(token_of_rows(row_TK, num_rows), row_TK)
        rows_RD = permute(x_TD, *handle)
        row_weights_R = permute_weights(topk_scores_TK, row_TK, num_rows)
        return rows_RD, row_weights_R, rows_per_expert_E, handle

    def combine(self, rows_RD: Tensor, handle: LocalHandle) -> Tensor:
        """Sum the weighted rows of each token."""
        return unpermute(rows_RD, *handle)
