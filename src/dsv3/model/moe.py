"""Feed-forward networks: the dense SwiGLU MLP and DeepSeekMoE (report section 2.1.2, eq. 12)."""

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsv3.config.balance import BalanceConfig
from dsv3.config.model import ModelConfig
from dsv3.model.backends import Backend
from dsv3.model.balance import balance_loss_of
from dsv3.model.router import Router
from dsv3.ops.balance import count_per_sequence
from dsv3.ops.routing import count_saturated


class TokenDispatcher(Protocol):
    """Brings tokens to the experts that this process holds, and their results back.

    `dispatch` takes the tokens of this process with the global ids and the gate values of their
    experts. It returns the rows for the local experts sorted by expert, [R, D], the gate value of
    each row [R], the number of rows of each local expert, int64 [e], and a handle for `combine`,
    which sums the rows of each token, [T, D]. Both methods are differentiable.

    Each expert's rows are filled up to a multiple of `row_multiple` with finite rows of weight
    zero. R may exceed the rows of all experts together; what lies beyond is arbitrary and has no
    effect. Ranks, groups and the format on the wire are the dispatcher's own business.
    """

    def dispatch(
        self,
        x_TD: Tensor,
        topk_expert_ids_TK: Tensor,
        topk_scores_TK: Tensor,
        *,
        row_multiple: int,
    ) -> tuple[Tensor, Tensor, Tensor, Any]:
        """Tokens to the rows of the local experts."""
        ...

    def combine(self, rows_RD: Tensor, handle: Any) -> Tensor:
        """Weighted rows of the experts back to their tokens."""
        ...


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)): a dense layer's FFN, and the shared experts as one."""

    def __init__(self, hidden_size: int, intermediate_size: int, *, backend: Backend) -> None:
        super().__init__()
        self.gate_proj = backend.linear(hidden_size, intermediate_size)
        self.up_proj = backend.linear(hidden_size, intermediate_size)
        self.down_proj = backend.linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Load(NamedTuple):
    """Where one pass sent its tokens, for the counters and the balance rule; no gradient."""

    tokens_per_expert_BE: Tensor  # int64, by sequence
    saturated_scores: Tensor  # int64 scalar


class MoE(nn.Module):
    """Shared experts for every token, routed experts for the tokens the router sends them.

    Counters hold what training passes counted since the caller last zeroed them; integers, so that
    nothing is rounded. `last_tokens_per_expert_BE` is that of the last pass of any kind.
    """

    tokens_per_expert_E: Tensor
    sequence_peaks: Tensor
    routed_sequences: Tensor
    saturated_scores: Tensor
    batch_tokens_per_expert_E: Tensor | None
    last_tokens_per_expert_BE: Tensor | None = None

    def __init__(
        self,
        config: ModelConfig,
        *,
        backend: Backend,
        dispatcher: TokenDispatcher,
        local_experts: range,
        balance: BalanceConfig | None,
    ) -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        self.dispatcher = dispatcher
        self.local_experts = local_experts
        D, F_expert = config.hidden_size, config.moe_intermediate_size
        self.gate = Router(config)
        self.experts = backend.experts(len(local_experts), D, F_expert)
        self.shared_experts = (
            MLP(D, F_expert * config.n_shared_experts, backend=backend)
            if config.n_shared_experts > 0
            else None
        )
        self.balance_loss = balance_loss_of(config, balance)
        counts_E = torch.zeros(config.n_routed_experts, dtype=torch.int64)
        self.register_buffer("tokens_per_expert_E", counts_E, persistent=False)
        for name in ("sequence_peaks", "routed_sequences", "saturated_scores"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64), persistent=False)
        # Counts of the batch for the loss per global batch, written by the caller before a step.
        # Those of the step before are a part of the training's state.
        of_batch = balance is not None and balance.strategy == "aux_batch"
        kept = balance is not None and balance.batch_counts == "previous_step"
        batch_E = counts_E.clone() if of_batch else None
        self.register_buffer("batch_tokens_per_expert_E", batch_E, persistent=kept)

    @property
    def router(self) -> Router:
        """The router; the files of the hub call it `gate`."""
        return self.gate

    def forward(self, hidden_BSD: Tensor) -> tuple[Tensor, Tensor | None, Load]:
        """The FFN's output, the layer's balance loss if it has one, and where the tokens went.

        The caller hands the last to `record`: this function may run twice when activations are
        recomputed.
        """
        x_TD = hidden_BSD.flatten(0, 1)
        routing = self.gate(x_TD)
        rows_RD, row_weights_R, rows_per_expert_e, handle = self.dispatcher.dispatch(
            x_TD,
            routing.expert_ids_TK,
            routing.topk_scores_TK,
            row_multiple=self.backend.row_multiple(self.experts),
        )
        rows_RD = self.experts(rows_RD, row_weights_R, rows_per_expert_e)
        out_TD = self.dispatcher.combine(rows_RD, handle)
        if self.shared_experts is not None:
            out_TD = out_TD + self.shared_experts(x_TD)
        ids_BA = routing.expert_ids_TK.view(hidden_BSD.shape[0], -1)
        counts_BE = count_per_sequence(ids_BA, self.config.n_routed_experts)
        loss = None
        if self.balance_loss is not None and self.training and torch.is_grad_enabled():
            loss = self.balance_loss(routing, counts_BE, self.batch_tokens_per_expert_E)
        saturated = count_saturated(routing.scores_TE, self.config.scoring_func)
        return out_TD.view_as(hidden_BSD), loss, Load(counts_BE, saturated)

    def record(self, load: Load) -> None:
        """Take the load of a pass: in training into the counters, once per pass."""
        self.last_tokens_per_expert_BE = load.tokens_per_expert_BE
        if self.training:
            self.tokens_per_expert_E += load.tokens_per_expert_BE.sum(dim=0)
            self.sequence_peaks += load.tokens_per_expert_BE.amax(dim=1).sum()
            self.routed_sequences += load.tokens_per_expert_BE.shape[0]
            self.saturated_scores += load.saturated_scores
