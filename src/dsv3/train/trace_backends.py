"""Where the layers of a traced program come from: those of a run where these can run without data.

On a GPU kernels of torch's are one operation where a CPU has many, and Transformer Engine's layers
do not exist without it: both have stand-ins.
"""

from typing import Any

import torch
from torch import Tensor, nn

from dsv3.config.precision import PrecisionConfig
from dsv3.model.backends import Backend
from dsv3.model.backends.emulated import EmulatedBackend
from dsv3.model.backends.te import FUSED_HEADS, EngineExperts, TransformerEngineBackend
from dsv3.model.backends.torch import TorchBackend, TorchRmsNorm
from dsv3.plan.memory_pass import Device
from dsv3.train.trace_engine import StandIn


def traced_backend(precision: PrecisionConfig, device: Device) -> Backend:
    """The layers of a precision recipe as they allocate on `device`."""
    match precision.backend:
        case "torch":
            return CudaBackend() if device == "cuda" else TorchBackend()
        case "emulated":
            kind = CudaEmulatedBackend if device == "cuda" else EmulatedBackend
            return kind(precision)
        case "te":
            return StandInBackend(precision)


class _FusedRmsNorm(torch.autograd.Function):
    """The allocations of torch's kernel for CUDA, which on a CPU is a composition of many."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor) -> Tensor:
        inverse = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
        ctx.save_for_backward(x, weight_D, inverse)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight_D, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight_D)


class CudaRmsNorm(TorchRmsNorm):
    """One kernel: it keeps the input and an FP32 number for each row."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        normed: Tensor = _FusedRmsNorm.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return normed


class CudaBackend(TorchBackend):
    """Layers that allocate as on a GPU, wherever the trace runs."""

    def rms_norm(self, width: int, eps: float) -> nn.Module:
        """x / rms(x) * `weight` [width], statistics in FP32."""
        return CudaRmsNorm(width, eps)

    def row_multiple(self, experts: nn.Module) -> int:
        """Any number of rows."""
        return 1

    def attention(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """Memory-efficient attention: of torch's kernels the one for heads of two widths."""
        return _efficient_attention(q, k, v, scale)


class CudaEmulatedBackend(CudaBackend, EmulatedBackend):
    """Emulated products between the kernels of a GPU."""


class StandInBackend(TransformerEngineBackend):
    """The adapter of a run over stand-ins for what it adapts."""

    def __init__(self, precision: PrecisionConfig) -> None:
        # Not the adapter's own, which loads Transformer Engine.
        self.engine: Any = StandIn(precision)
        self.precision = precision
        self.recipe = None
        self._attentions: dict[tuple[int, float], Any] = {}

    def experts(self, num_experts: int, hidden_size: int, intermediate_size: int) -> nn.Module:
        """Networks of the local experts, equally loaded."""
        return EvenExperts(self, num_experts, hidden_size, intermediate_size)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """That of the adapter, or torch's on a GPU for widths that it leaves to torch."""
        if (q.shape[-1], v.shape[-1]) != FUSED_HEADS:
            return _efficient_attention(q, k, v, scale)
        return super().attention(q, k, v, scale=scale)


class EvenExperts(EngineExperts):
    """Experts that are told how many rows each has, where there are no numbers to read."""

    def counts(self, rows_RD: Tensor, rows_per_expert_e: Tensor) -> list[int]:
        """What arrived, shared out evenly and filled up: the rest of the rows is room for that."""
        experts, multiple = len(rows_per_expert_e), self.gate_up.row_multiple
        arrived = max(0, len(rows_RD) - experts * (multiple - 1))
        shares = (arrived // experts + (each < arrived % experts) for each in range(experts))
        return [-(-share // multiple) * multiple for share in shares]


def _efficient_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    out: Tensor
    out, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, None, True, 0.0, True, scale=scale
    )
    return out
