"""Where the model's layers come from; plain torch is the reference."""

from typing import Protocol

from torch import Tensor, nn


class Backend(Protocol):
    """Makes the layers whose arithmetic a precision recipe decides.

    Every layer holds its parameters under the names of names.py and computes in the type of its
    weights.
    """

    def linear(self, in_features: int, out_features: int) -> nn.Module:
        """y = x W^T with `weight` [out, in], without a bias."""
        ...

    def rms_norm(self, width: int, eps: float) -> nn.Module:
        """x / rms(x) * `weight` [width], statistics in FP32."""
        ...

    def experts(self, num_experts: int, hidden_size: int, intermediate_size: int) -> nn.Module:
        """Networks of the local experts: (rows_RD, row_weights_R, rows_per_expert_e) -> rows_RD.

        Rows come sorted by expert; each goes through its expert's network and is scaled by its
        weight. Holds `gate_up_proj` [e, 2F, D] and `down_proj` [e, D, F]. `used_rows` of the same
        arguments says how many rows of the output mean something: those beyond may be anything.
        """
        ...

    def row_multiple(self, experts: nn.Module) -> int:
        """What the number of rows of each of these experts must be a multiple of."""
        ...

    def attention(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """Causal attention of [B, H, S, d] queries and keys over [B, H, S, V] values."""
        ...

    def prepare(self, model: nn.Module) -> None:
        """Called once, when the layers made here have their places and weights in `model`.

        A layer learns its canonical name here, under which it notes its products.
        """
        ...
