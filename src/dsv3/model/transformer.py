"""The decoder: embedding, blocks, final norm and head, or the part of them one process holds."""

import torch
from torch import Tensor, nn

from dsv3.config.model import ModelConfig
from dsv3.model.attention import rotation_of
from dsv3.model.backends import Backend
from dsv3.model.block import Block
from dsv3.model.moe import MoE, TokenDispatcher
from dsv3.ops.cross_entropy import linear_cross_entropy, linear_token_losses


class Decoder(nn.Module):
    """What canonical names call `model`: the embedding, the layers by global number, the norm."""

    embed_tokens: nn.Embedding
    norm: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()


class Transformer(nn.Module):
    """A DeepSeek-V3-style language model, or one stage of it.

    A sequence of layers with tensors in and tensors out: `embed`, `run_blocks`, `loss`. Between
    them go the hidden states [B, S, D] and the balance loss of the layers so far, a scalar that
    the language-model loss does not contain. `layers` is the range of blocks held here; the
    embedding belongs to the first of them, the final norm and the head to the last.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        backend: Backend,
        dispatcher: TokenDispatcher,
        layers: range | None = None,
        local_experts: range | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.layer_range = range(config.num_hidden_layers) if layers is None else layers
        experts = range(config.n_routed_experts) if local_experts is None else local_experts
        self.model = Decoder()
        if self.holds_embedding:
            self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        for layer in self.layer_range:
            self.model.layers[str(layer)] = Block(
                config,
                layer,
                backend=backend,
                dispatcher=dispatcher,
                local_experts=experts,
                recompute=recompute,
            )
        if self.holds_head:
            self.model.norm = backend.rms_norm(config.hidden_size, config.rms_norm_eps)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._rotation: Tensor | None = None

    @property
    def holds_embedding(self) -> bool:
        """Whether this part begins the model."""
        return self.layer_range.start == 0

    @property
    def holds_head(self) -> bool:
        """Whether this part ends the model."""
        return self.layer_range.stop == self.config.num_hidden_layers

    def blocks(self) -> list[Block]:
        """The blocks held here, in order."""
        return [block for block in self.model.layers.values() if isinstance(block, Block)]

    def moe_layers(self) -> dict[str, MoE]:
        """The MoE layers held here, by canonical name."""
        return {name: module for name, module in self.named_modules() if isinstance(module, MoE)}

    def forward(self, input_ids_BS: Tensor, labels_BS: Tensor) -> Tensor:
        """Mean cross entropy of the labels, an FP32 scalar in nats per token."""
        return self.loss(*self.run_blocks(*self.embed(input_ids_BS)), labels_BS)

    def logits(self, input_ids_BS: Tensor) -> Tensor:
        """Logits [B, S, X] in the type of the weights."""
        hidden_BSD, _ = self.run_blocks(*self.embed(input_ids_BS))
        logits_BSX: Tensor = self.lm_head(self.model.norm(hidden_BSD))
        return logits_BSX

    @torch.no_grad()
    def token_losses(self, input_ids_BS: Tensor, labels_BS: Tensor) -> Tensor:
        """Cross entropy of every label, FP32 [B, S]; without a gradient."""
        hidden_BSD, _ = self.run_blocks(*self.embed(input_ids_BS))
        hidden_TD = self.model.norm(hidden_BSD).flatten(0, 1)
        losses_T = linear_token_losses(hidden_TD, self.lm_head.weight, labels_BS.flatten())
        return losses_T.view_as(labels_BS)

    def embed(self, input_ids_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids to the first hidden states and a balance loss of zero."""
        hidden_BSD = self.model.embed_tokens(input_ids_BS)
        return hidden_BSD, hidden_BSD.new_zeros((), dtype=torch.float32)

    def run_blocks(self, hidden_BSD: Tensor, balance_loss: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states and balance loss through the blocks held here."""
        rotation = self._rotation_for(hidden_BSD)
        for block in self.blocks():
            hidden_BSD, balance_loss = block(hidden_BSD, balance_loss, rotation)
        return hidden_BSD, balance_loss

    def loss(self, hidden_BSD: Tensor, balance_loss: Tensor, labels_BS: Tensor) -> Tensor:
        """Final norm, head and mean cross entropy; the balance loss stays out of it."""
        hidden_TD = self.model.norm(hidden_BSD).flatten(0, 1)
        return linear_cross_entropy(hidden_TD, self.lm_head.weight, labels_BS.flatten())

    def _rotation_for(self, hidden_BSD: Tensor) -> Tensor:
        length, device = hidden_BSD.shape[1], hidden_BSD.device
        cached = self._rotation
        if cached is None or cached.shape[1] != length or cached.device != device:
            with torch.inference_mode(False):  # kept for training steps after an evaluation
                cached = self._rotation = rotation_of(self.config, length, device)
        return cached
