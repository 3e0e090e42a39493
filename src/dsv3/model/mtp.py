"""A module of multi-token prediction (report section 2.2, eq. 21 to 25).

Module k takes the hidden state of position i and the token k places further, and predicts the token
after that one. It stands in the model as one more layer, and has the embedding and the head of the
main model for its own.
"""

from typing import Unpack

import torch
from torch import Tensor, nn

from dsv3.config.model import ModelConfig
from dsv3.model.backends import Backend
from dsv3.model.block import Block, Parts
from dsv3.model.recompute import remade


class SharedHead(nn.Module):
    """The norm before the shared head; the files of the hub keep a copy of the head with it."""

    def __init__(self, config: ModelConfig, *, backend: Backend) -> None:
        super().__init__()
        self.norm = backend.rms_norm(config.hidden_size, config.rms_norm_eps)


class MtpModule(Block):
    """A block over [embedding of the token ahead ; hidden state], each normed first.

    The order of the two halves is that of the released weights; eq. 21 has them the other way
    round, which is a permutation of the columns of `eh_proj`.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        *,
        backend: Backend,
        **parts: Unpack[Parts],
    ) -> None:
        super().__init__(config, layer, backend=backend, **parts)
        self.enorm = backend.rms_norm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = backend.rms_norm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = backend.linear(2 * config.hidden_size, config.hidden_size)
        self.shared_head = SharedHead(config, backend=backend)

    def join(self, hidden_BSD: Tensor, embedded_BSD: Tensor) -> Tensor:
        """The input of the block (eq. 21), [B, S, D]."""
        joined_BSD: Tensor
        if self.recompute == "norm_and_up_projection":
            with remade(self._normed_pair, embedded_BSD, hidden_BSD) as pair:
                joined_BSD = self.eh_proj(pair)
        else:
            joined_BSD = self.eh_proj(self._normed_pair(embedded_BSD, hidden_BSD))
        return joined_BSD

    def _normed_pair(self, embedded_BSD: Tensor, hidden_BSD: Tensor) -> Tensor:
        return torch.cat((self.enorm(embedded_BSD), self.hnorm(hidden_BSD)), dim=-1)
