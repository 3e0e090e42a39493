"""Token dispatchers: how tokens reach the experts and come back."""

from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor

from dsv3.ops.permute import expert_rows, permute, permute_weights, token_of_rows, unpermute
from dsv3.ops.routing import count_tokens
from dsv3.parallel.exchange import Exchange, Splits, Traffic
from dsv3.parallel.wire import round_backward, round_forward


class LocalHandle(NamedTuple):
    """Where `dispatch` put the rows: the token of each row, the rows of each token."""

    token_R: Tensor
    row_TK: Tensor


class LocalDispatcher:
    """All experts live in this process: a reordering, dropless, without communication.

    With `fp8` it rounds as FP8 on the wire does, so that one rank computes what many do.
    """

    def __init__(self, n_routed_experts: int, *, fp8: bool = False) -> None:
        self.n_routed_experts = n_routed_experts
        self.fp8 = fp8

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
        rows_RD = permute(round_forward(x_TD) if self.fp8 else x_TD, *handle)
        row_weights_R = permute_weights(topk_scores_TK, row_TK, num_rows)
        return rows_RD, row_weights_R, rows_per_expert_E, handle

    def combine(self, rows_RD: Tensor, handle: LocalHandle) -> Tensor:
        """Sum the weighted rows of each token."""
        x_TD = unpermute(rows_RD, *handle)
        return round_backward(x_TD) if self.fp8 else x_TD


class AllToAllHandle(NamedTuple):
    """The way back: places of the rows here, the way between the ranks, places at home."""

    here: LocalHandle  # of the arrived rows among the experts' rows
    splits: Splits
    home: LocalHandle  # of the tokens among the rows sent


class AllToAllDispatcher:
    """Experts shared out evenly over the ranks of `group`, in its order: dropless, uneven.

    Every rank calls it equally often and in the same order, with as many tokens as it has, also
    none. A call exchanges the counts, then the rows with their gate values in one message; the
    result is exchanged back. Rows of an expert are sorted by source rank and there by token: as one
    process would have them with the tokens of all ranks in a row. A token's rows are summed at home
    in the order of its experts. So values and all gradients are those of `LocalDispatcher` to the
    last bit, and the gradients of the local experts are complete without a further reduction
    inside the group.

    Rows travel in their own type, or with `fp8` as FP8 to the experts (wire.py).
    """

    def __init__(
        self,
        n_routed_experts: int,
        group: torch.distributed.ProcessGroup,
        *,
        fp8: bool = False,
    ) -> None:
        self._exchange = Exchange(group)
        self.fp8 = fp8
        assert n_routed_experts % self._exchange.size == 0, f"{n_routed_experts=}"
        self.n_routed_experts = n_routed_experts

    def take_traffic(self) -> Traffic:
        """Bytes, calls and seconds by hop since the last call, of all layers together."""
        return self._exchange.take_traffic()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def dispatch(
        self,
        x_TD: Tensor,
        topk_expert_ids_TK: Tensor,
        topk_scores_TK: Tensor,
        *,
        row_multiple: int,
    ) -> tuple[Tensor, Tensor, Tensor, AllToAllHandle]:
        """Send each token to the ranks of its experts; receive the rows of the local ones."""
        counts_E = count_tokens(topk_expert_ids_TK, self.n_routed_experts)
        row_TK, _ = expert_rows(topk_expert_ids_TK, counts_E, row_multiple=1)
        assignments = topk_expert_ids_TK.numel()
        home = LocalHandle(token_of_rows(row_TK, assignments), row_TK)
        arriving, splits = self._exchange.counts(counts_E)
        rows_AD, weights_A = self._exchange.rows(
            "dispatch",
            splits,
            permute(x_TD, *home),
            permute_weights(topk_scores_TK, row_TK, assignments),
            fp8=self.fp8,
            fp8_back=False,
        )
        here, rows_per_expert_e = _places(arriving, sum(splits.received), row_multiple)
        rows_RD = permute(rows_AD, *here)
        row_weights_R = permute_weights(weights_A.unsqueeze(1), here.row_TK, len(here.token_R))
        return rows_RD, row_weights_R, rows_per_expert_e, AllToAllHandle(here, splits, home)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def combine(self, rows_RD: Tensor, handle: AllToAllHandle) -> Tensor:
        """Send the weighted rows home and sum those of each token."""
        [rows_AD] = self._exchange.rows(
            "combine",
            handle.splits.back(),
            unpermute(rows_RD, *handle.here),
            fp8=False,
            fp8_back=self.fp8,
        )
        return unpermute(rows_AD, *handle.home)


def _places(arriving: Tensor, arrived: int, row_multiple: int) -> tuple[LocalHandle, Tensor]:
    """Sort rows that come by rank, and there by expert, by expert; [ranks, e] says how many.

    The places of the rows, and the number of rows of each expert with those that fill it up.
    """
    ranks, local = arriving.shape
    expert_A = torch.arange(local, device=arriving.device).repeat(ranks)
    expert_A = expert_A.repeat_interleave(arriving.flatten(), output_size=arrived)
    row_A1, rows_per_expert_e = expert_rows(
        expert_A.unsqueeze(1), arriving.sum(dim=0), row_multiple=row_multiple
    )
    # An upper bound, as in LocalDispatcher; rows to copy are there only if one arrived.
    num_rows = arrived + local * (row_multiple - 1) if arrived > 0 else 0
    return LocalHandle(token_of_rows(row_A1, num_rows), row_A1), rows_per_expert_e
