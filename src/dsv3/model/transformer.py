"""The decoder: embedding, blocks, final norm and head, or the part of them one process holds."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from dsv3.config.balance import BalanceConfig
from dsv3.config.model import ModelConfig
from dsv3.config.mtp import MtpConfig
from dsv3.config.recompute import RecomputePolicy
from dsv3.model.attention import rotation_of
from dsv3.model.backends import Backend
from dsv3.model.block import Block
from dsv3.model.moe import MoE, TokenDispatcher
from dsv3.model.mtp import MtpModule
from dsv3.ops.cross_entropy import linear_best_tokens, linear_cross_entropy, linear_token_losses

BlockT = TypeVar("BlockT", bound=Block)


class Losses(NamedTuple):
    """FP32 losses of a batch; the first is what is trained on, the rest what it is made of."""

    objective: Tensor
    lm: Tensor  # mean cross entropy of the next token, in nats
    balance: Tensor  # summed over layers, with its coefficients
    mtp: Tensor  # [D], of each MTP module, without its weight


class Decoder(nn.Module):
    """What canonical names call `model`: the embedding, the layers by global number, the norm."""

    embed_tokens: nn.Embedding
    norm: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()


class Transformer(nn.Module):
    """A DeepSeek-V3-style language model, or the parts of it that one rank of a pipeline holds.

    A sequence of layers with tensors in and tensors out: `embed`, `run_blocks`, `losses`. `parts`
    are the ranges of blocks held here, one after the other in the model but not necessarily next to
    each other. The embedding belongs to the first block, the final norm, the head and the MTP
    modules to the last. MTP modules are numbered on from the last block; the embedding they share
    is not held twice: they are given what `embed` made of the tokens.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        backend: Backend,
        dispatcher: TokenDispatcher,
        parts: Sequence[range] | None = None,
        local_experts: range | None = None,
        recompute: RecomputePolicy = "none",
        balance: BalanceConfig | None = None,
        mtp: MtpConfig | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.mtp = mtp
        self.parts = (range(config.num_hidden_layers),) if parts is None else tuple(parts)
        experts = range(config.n_routed_experts) if local_experts is None else local_experts
        self.local_experts = experts
        self.model = Decoder()
        if self.holds_embedding:
            self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.mtp_depth = 0 if mtp is None else mtp.num_nextn_predict_layers
        last = config.num_hidden_layers
        self.mtp_range = range(last, last + (self.mtp_depth if self.holds_head else 0))
        for layer in (*chain.from_iterable(self.parts), *self.mtp_range):
            kind = MtpModule if layer in self.mtp_range else Block
            self.model.layers[str(layer)] = kind(
                config,
                layer,
                backend=backend,
                dispatcher=dispatcher,
                local_experts=experts,
                recompute=recompute,
                balance=balance,
            )
        if self.holds_head:
            self.model.norm = backend.rms_norm(config.hidden_size, config.rms_norm_eps)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._rotation: Tensor | None = None

    @property
    def holds_embedding(self) -> bool:
        """Whether one of the parts begins the model."""
        return any(part.start == 0 for part in self.parts)

    @property
    def holds_head(self) -> bool:
        """Whether one of the parts ends the model."""
        return any(part.stop == self.config.num_hidden_layers for part in self.parts)

    def blocks(self, part: int = 0) -> list[Block]:
        """The blocks of a part, in order, without the MTP modules."""
        return [self._layer(layer, Block) for layer in self.parts[part]]

    def mtp_modules(self) -> list[MtpModule]:
        """The MTP modules held here, by rising depth."""
        return [self._layer(layer, MtpModule) for layer in self.mtp_range]

    def moe_layers(self) -> dict[str, MoE]:
        """The MoE layers held here, those of MTP modules too, by canonical name."""
        return {name: module for name, module in self.named_modules() if isinstance(module, MoE)}

    def forward(
        self, input_ids_BS: Tensor, labels_BS: Tensor, mtp_loss_coeff: Tensor | None = None
    ) -> Losses:
        """Losses of the labels; `mtp_loss_coeff` (lambda) weighs the mean of the MTP modules'."""
        embedded_BSD = self.embed(input_ids_BS)
        hidden_BSD, balance_loss = self.run_blocks(embedded_BSD)
        return self.losses(hidden_BSD, embedded_BSD, balance_loss, labels_BS, mtp_loss_coeff)

    def logits(self, input_ids_BS: Tensor) -> Tensor:
        """Logits [B, S, X] in the type of the weights."""
        hidden_BSD, _ = self.run_blocks(self.embed(input_ids_BS))
        logits_BSX: Tensor = self.lm_head(self.model.norm(hidden_BSD))
        return logits_BSX

    def token_losses(self, input_ids_BS: Tensor, labels_BS: Tensor) -> Tensor:
        """Cross entropy of every label, FP32 [B, S]; without a gradient."""
        with torch.no_grad():
            hidden_BSD, _ = self.run_blocks(self.embed(input_ids_BS))
        return self.token_losses_of(hidden_BSD, labels_BS)

    def mtp_acceptance(self, input_ids_BS: Tensor) -> Tensor:
        """`mtp_acceptance_of` the whole model, FP32 [D]."""
        with torch.no_grad():
            embedded_BSD = self.embed(input_ids_BS)
            hidden_BSD, _ = self.run_blocks(embedded_BSD)
        return self.mtp_acceptance_of(hidden_BSD, embedded_BSD)

    def route(self, input_ids_BS: Tensor) -> None:
        """Run every MoE layer for its counters alone, those of MTP modules too."""
        with torch.no_grad():
            embedded_BSD = self.embed(input_ids_BS)
            hidden_BSD, _ = self.run_blocks(embedded_BSD)
        self.route_mtp(hidden_BSD, embedded_BSD)

    @torch.no_grad()
    def token_losses_of(self, hidden_BSD: Tensor, labels_BS: Tensor) -> Tensor:
        """Cross entropy of every label, FP32 [B, S], from the last hidden states."""
        hidden_TD = self.model.norm(hidden_BSD).flatten(0, 1)
        losses_T = linear_token_losses(hidden_TD, self.lm_head.weight, labels_BS.flatten())
        return losses_T.view_as(labels_BS)

    @torch.no_grad()
    def route_mtp(self, hidden_BSD: Tensor, embedded_BSD: Tensor) -> None:
        """Run the MoE layers of the MTP modules, if there are any, for their counters alone."""
        for _ in self._run_mtp(hidden_BSD, embedded_BSD):
            pass

    def embed(self, input_ids_BS: Tensor) -> Tensor:
        """Token ids to the first hidden states."""
        hidden_BSD: Tensor = self.model.embed_tokens(input_ids_BS)
        return hidden_BSD

    def run_blocks(self, hidden_BSD: Tensor, part: int = 0) -> tuple[Tensor, Tensor]:
        """Hidden states through the blocks of a part, and the balance loss of these, a scalar."""
        balance_loss = hidden_BSD.new_zeros((), dtype=torch.float32)
        rotation = self._rotation_for(hidden_BSD)
        for block in self.blocks(part):
            hidden_BSD, balance_loss = block(hidden_BSD, balance_loss, rotation)
        return hidden_BSD, balance_loss

    def losses(
        self,
        hidden_BSD: Tensor,
        embedded_BSD: Tensor,
        balance_loss: Tensor,
        labels_BS: Tensor,
        mtp_loss_coeff: Tensor | None,
    ) -> Losses:
        """From the last hidden states to the objective: lm + balance + lambda * mean of mtp.

        `balance_loss` is that of the blocks held here; those of other ranks are theirs to add.
        """
        lm = self.loss(hidden_BSD, labels_BS)
        if not self.mtp_range:
            return Losses(lm + balance_loss, lm, balance_loss, lm.new_zeros(0))
        by_depth = []
        for offset, normed_BSD, loss in self._run_mtp(hidden_BSD, embedded_BSD):
            balance_loss, positions = balance_loss + loss, normed_BSD.shape[1]
            mean = self.head_loss(normed_BSD, labels_BS[:, offset:])
            by_depth.append(mean * (positions / labels_BS.shape[1]))  # eq. 24 divides by all T
        mtp = torch.stack(by_depth)
        weight = mtp.new_zeros(()) if mtp_loss_coeff is None else mtp_loss_coeff
        return Losses(lm + balance_loss + weight * mtp.mean(), lm, balance_loss, mtp)

    def losses_of_blocks(self, balance_loss: Tensor) -> Losses:
        """Losses of a part that does not end the model: its balance loss, and nothing else."""
        zero = balance_loss.new_zeros(())
        return Losses(balance_loss, zero, balance_loss, zero.new_zeros(self.mtp_depth))

    def loss(self, hidden_BSD: Tensor, labels_BS: Tensor) -> Tensor:
        """Final norm, head and mean cross entropy."""
        return self.head_loss(self.model.norm(hidden_BSD), labels_BS)

    def head_loss(self, normed_BSD: Tensor, labels_BS: Tensor) -> Tensor:
        """Head and mean cross entropy of states that are normed already."""
        normed_TD = normed_BSD.flatten(0, 1)
        return linear_cross_entropy(normed_TD, self.lm_head.weight, labels_BS.flatten())

    @torch.no_grad()
    def mtp_acceptance_of(self, hidden_BSD: Tensor, embedded_BSD: Tensor) -> Tensor:
        """Share of module k's best tokens that are the main model's for the same place, FP32 [D].

        What speculative decoding would accept of them greedily, were the text the model's own.
        """
        main_BS = self._best_tokens(self.model.norm(hidden_BSD))
        shares = [
            (self._best_tokens(normed_BSD) == main_BS[:, offset:]).float().mean()
            for offset, normed_BSD, _ in self._run_mtp(hidden_BSD, embedded_BSD)
        ]
        return torch.stack(shares) if shares else hidden_BSD.new_zeros(0, dtype=torch.float32)

    def _run_mtp(
        self, hidden_BSD: Tensor, embedded_BSD: Tensor
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Offset k of each module, its states before the head [B, S - k, D], its balance loss.

        Each module has one position less than the one before: a sequence has no token beyond its
        end to be given.
        """
        if not self.mtp_range:
            return
        assert self.mtp is not None
        if self.mtp.input == "normed":
            hidden_BSD = self.model.norm(hidden_BSD)
        rotation = self._rotation_for(embedded_BSD)
        for offset, module in enumerate(self.mtp_modules(), start=1):
            positions = embedded_BSD.shape[1] - offset
            joined_BSD = module.join(hidden_BSD[:, :positions], embedded_BSD[:, offset:])
            nothing = hidden_BSD.new_zeros((), dtype=torch.float32)
            hidden_BSD, loss = module(joined_BSD, nothing, rotation[:, :positions])
            yield offset, module.shared_head.norm(hidden_BSD), loss

    def _best_tokens(self, normed_BSD: Tensor) -> Tensor:
        best_T = linear_best_tokens(normed_BSD.flatten(0, 1), self.lm_head.weight)
        return best_T.view(normed_BSD.shape[:2])

    def _layer(self, layer: int, kind: type[BlockT]) -> BlockT:
        block = self.model.layers[str(layer)]
        assert isinstance(block, kind)
        return block

    def _rotation_for(self, states_BS: Tensor) -> Tensor:
        length, device = states_BS.shape[1], states_BS.device
        cached = self._rotation
        if cached is None or cached.shape[1] != length or cached.device != device:
            with torch.inference_mode(False):  # kept for training steps after an evaluation
                cached = self._rotation = rotation_of(self.config, length, device)
        return cached
