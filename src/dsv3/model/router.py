"""The router of a MoE layer: which experts a token goes to, and how much each counts."""

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from dsv3.config.model import ModelConfig
from dsv3.ops.routing import router_logits, router_scores, routing_weights, select_experts


class Routing(NamedTuple):
    """What the router made of T tokens; all floating-point tensors are FP32."""

    logits_TE: Tensor
    scores_TE: Tensor
    expert_ids_TK: Tensor  # int64, in no particular order
    topk_scores_TK: Tensor  # gate values


class Router(nn.Module):
    """Scores by the inner product with each expert's centroid (report eq. 13 to 16).

    The expert bias of the auxiliary-loss-free strategy decides the selection only. It is a buffer,
    updated from outside once per optimizer step, and FP32 under every precision: its steps of
    gamma vanish in BF16.
    """

    e_score_correction_bias: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        bias_E = torch.zeros(config.n_routed_experts, dtype=torch.float32)
        self.register_buffer("e_score_correction_bias", bias_E)

    def forward(self, x_TD: Tensor) -> Routing:
        """Route tokens [T, D]."""
        c = self.config
        logits_TE = router_logits(x_TD, self.weight)
        scores_TE = router_scores(logits_TE, c.scoring_func)
        expert_ids_TK = select_experts(
            scores_TE,
            self.e_score_correction_bias,
            top_k=c.num_experts_per_tok,
            n_group=c.n_group,
            topk_group=c.topk_group,
        )
        topk_scores_TK = routing_weights(
            scores_TE,
            expert_ids_TK,
            normalise=c.norm_topk_prob,
            scaling_factor=c.routed_scaling_factor,
        )
        return Routing(logits_TE, scores_TE, expert_ids_TK, topk_scores_TK)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # NOTE footgun: `.to(torch.bfloat16)` converts buffers too and would round the bias.
        exact = self.e_score_correction_bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = self.e_score_correction_bias
        if moved.dtype != torch.float32:
            self.e_score_correction_bias = exact.to(moved.device)
        return self
