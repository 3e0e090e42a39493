"""Feed-forward networks: the dense SwiGLU MLP and DeepSeekMoE (report section 2.1.2, eq. 12)."""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsv3.config.model import ModelConfig
from dsv3.model.backends import Backend
from dsv3.model.router import Router
from dsv3.ops.routing import count_tokens


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


class MoE(nn.Module):
    """Shared experts for every token, routed experts for the tokens the router sends them."""

    tokens_per_expert_E: Tensor

    def __init__(
        self,
        config: ModelConfig,
        *,
        backend: Backend,
        dispatcher: TokenDispatcher,
        local_experts: range,
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
        # Tokens sent to each expert since the counts were last zeroed; never rounded, hence int64.
        counts_E = torch.zeros(config.n_routed_experts, dtype=torch.int64)
        self.register_buffer("tokens_per_expert_E", counts_E, persistent=False)

    @property
    def router(self) -> Router:
        """The router; the files of the hub call it `gate`."""
        return self.gate

    def forward(self, hidden_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """The FFN's output and the tokens this pass sent to each expert, int64 [E].

        The caller adds the latter to `tokens_per_expert_E`: this function may run twice when
        activations are recomputed.
        """
        x_TD = hidden_BSD.flatten(0, 1)
        expert_ids_TK, topk_scores_TK = self.gate(x_TD)
        rows_RD, row_weights_R, rows_per_expert_e, handle = self.dispatcher.dispatch(
            x_TD,
            expert_ids_TK,
            topk_scores_TK,
            row_multiple=self.backend.row_multiple(self.experts),
        )
        rows_RD = self.experts(rows_RD, row_weights_R, rows_per_expert_e)
        out_TD = self.dispatcher.combine(rows_RD, handle)
        if self.shared_experts is not None:
            out_TD = out_TD + self.shared_experts(x_TD)
        return out_TD.view_as(hidden_BSD), count_tokens(expert_ids_TK, self.config.n_routed_experts)
