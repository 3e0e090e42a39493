"""One layer of the decoder: attention and feed-forward network, each normed before and added."""

from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn

from dsv3.config.balance import BalanceConfig
from dsv3.config.model import ModelConfig
from dsv3.config.recompute import RecomputePolicy
from dsv3.model.attention import LatentAttention
from dsv3.model.backends import Backend
from dsv3.model.moe import MLP, MoE, PassLoad, TokenDispatcher
from dsv3.model.recompute import remade, selective, whole


class Parts(TypedDict):
    """What every layer is made with besides its backend."""

    dispatcher: TokenDispatcher
    local_experts: range
    recompute: RecomputePolicy
    balance: BalanceConfig | None


class Block(nn.Module):
    """h + attention(norm(h)), then h + FFN(norm(h)); the FFN is dense or MoE.

    `recompute` says what is dropped and made again in the backward pass: the norms, and all that is
    expanded from the latents (report section 3.2.3); the FFN of a MoE layer, with its exchange of
    tokens; everything but the block's input.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        *,
        backend: Backend,
        **parts: Unpack[Parts],
    ) -> None:
        super().__init__()
        self.recompute = parts["recompute"]
        self.self_attn = LatentAttention(config, backend=backend)
        self.mlp: MLP | MoE
        if layer < config.first_k_dense_replace:
            self.mlp = MLP(config.hidden_size, config.intermediate_size, backend=backend)
        else:
            self.mlp = MoE(
                config,
                backend=backend,
                dispatcher=parts["dispatcher"],
                local_experts=parts["local_experts"],
                balance=parts["balance"],
            )
        self.input_layernorm = backend.rms_norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = backend.rms_norm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, hidden_BSD: Tensor, balance_loss: Tensor, rotation: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The next hidden states, and the balance loss of the layers so far with this one's."""
        if self.recompute == "full" and torch.is_grad_enabled():
            hidden_BSD, loss, load = whole(self.compute, hidden_BSD, rotation)
        else:
            hidden_BSD, loss, load = self.compute(hidden_BSD, rotation)
        # Outside of what is recomputed, so that a token counts once.
        if load is not None:
            assert isinstance(self.mlp, MoE)
            self.mlp.record(load)
        return hidden_BSD, balance_loss if loss is None else balance_loss + loss

    def compute(
        self, hidden_BSD: Tensor, rotation: Tensor
    ) -> tuple[Tensor, Tensor | None, PassLoad | None]:
        """The layer without side effects: hidden states, balance loss, load (None if dense)."""
        hidden_BSD = hidden_BSD + self._attend(hidden_BSD, rotation)
        if self.recompute == "moe" and isinstance(self.mlp, MoE) and torch.is_grad_enabled():
            out_BSD, loss, load = whole(self._feed_forward, hidden_BSD)
        else:
            out_BSD, loss, load = self._feed_forward(hidden_BSD)
        return hidden_BSD + out_BSD, loss, load

    def _attend(self, hidden_BSD: Tensor, rotation: Tensor) -> Tensor:
        if self.recompute != "norm_and_up_projection" or not torch.is_grad_enabled():
            out_BSD: Tensor = self.self_attn(self.input_layernorm(hidden_BSD), rotation)
            return out_BSD
        heads_BSA = selective(self._attend_normed, hidden_BSD, rotation)
        projected_BSD: Tensor = self.self_attn.o_proj(heads_BSA)
        return projected_BSD

    def _attend_normed(self, hidden_BSD: Tensor, rotation: Tensor) -> Tensor:
        return self.self_attn.attend(self.input_layernorm(hidden_BSD), rotation)

    def _feed_forward(self, hidden_BSD: Tensor) -> tuple[Tensor, Tensor | None, PassLoad | None]:
        if self.recompute == "norm_and_up_projection":
            with remade(self.post_attention_layernorm, hidden_BSD) as normed_BSD:
                return self._mix(normed_BSD)
        return self._mix(self.post_attention_layernorm(hidden_BSD))

    def _mix(self, normed_BSD: Tensor) -> tuple[Tensor, Tensor | None, PassLoad | None]:
        if isinstance(self.mlp, MoE):
            out: tuple[Tensor, Tensor | None, PassLoad] = self.mlp(normed_BSD)
            return out
        return self.mlp(normed_BSD), None, None
