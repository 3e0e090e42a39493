"""One layer of the decoder: attention and feed-forward network, each normed before and added."""

from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dsv3.config.balance import BalanceConfig
from dsv3.config.model import ModelConfig
from dsv3.model.attention import LatentAttention
from dsv3.model.backends import Backend
from dsv3.model.moe import MLP, MoE, PassLoad, TokenDispatcher


class Parts(TypedDict):
    """What every layer is made with besides its backend."""

    dispatcher: TokenDispatcher
    local_experts: range
    recompute: bool
    balance: BalanceConfig | None


class Block(nn.Module):
    """h + attention(norm(h)), then h + FFN(norm(h)); the FFN is dense or MoE.

    With `recompute`, activations inside the block are dropped and made again in the backward pass.
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
        if self.recompute and torch.is_grad_enabled():
            hidden_BSD, loss, load = checkpoint(
                self.compute, hidden_BSD, rotation, use_reentrant=False
            )
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
        hidden_BSD = hidden_BSD + self.self_attn(self.input_layernorm(hidden_BSD), rotation)
        normed_BSD = self.post_attention_layernorm(hidden_BSD)
        if isinstance(self.mlp, MoE):
            out_BSD, loss, load = self.mlp(normed_BSD)
            return hidden_BSD + out_BSD, loss, load
        return hidden_BSD + self.mlp(normed_BSD), None, None
