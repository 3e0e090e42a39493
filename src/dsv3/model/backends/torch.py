"""Plain torch layers, in the type of their weights; FP32 and BF16 on any device."""

import torch
from torch import Tensor, nn

from dsv3.ops.attention import causal_attention
from dsv3.ops.experts import grouped_mlp
from dsv3.ops.norm import rms_norm


class TorchBackend:
    """The layers as torch has them; the reference every other backend is compared with."""

    def linear(self, in_features: int, out_features: int) -> nn.Module:
        """y = x W^T with `weight` [out, in], without a bias."""
        return nn.Linear(in_features, out_features, bias=False)

    def rms_norm(self, width: int, eps: float) -> nn.Module:
        """x / rms(x) * `weight` [width], statistics in FP32."""
        return TorchRmsNorm(width, eps)

    def experts(self, num_experts: int, hidden_size: int, intermediate_size: int) -> nn.Module:
        """Networks of the local experts; see `Backend.experts`."""
        return TorchExperts(num_experts, hidden_size, intermediate_size)

    def row_multiple(self, experts: nn.Module) -> int:
        """32 for BF16 on a CPU: oneDNN compiles a kernel for every new number of rows, for 1 ms."""
        weight = next(experts.parameters())
        return 32 if weight.dtype == torch.bfloat16 and weight.device.type == "cpu" else 1

    def attention(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """Causal attention of [B, H, S, d] queries and keys over [B, H, S, V] values."""
        return causal_attention(q, k, v, scale=scale)

    def prepare(self, model: nn.Module) -> None:
        """Nothing: these layers note no products."""


class TorchRmsNorm(nn.Module):
    """x / rms(x) * weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return rms_norm(x, self.weight, self.eps)


class TorchExperts(nn.Module):
    """SwiGLU networks of the local experts, their weights stacked."""

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(
            torch.empty(num_experts, 2 * intermediate_size, hidden_size)
        )
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, intermediate_size))

    def forward(self, rows_RD: Tensor, row_weights_R: Tensor, rows_per_expert_e: Tensor) -> Tensor:
        """Rows sorted by expert in, the same rows through their expert and weighted out."""
        return grouped_mlp(
            rows_RD, row_weights_R, rows_per_expert_e, self.gate_up_proj, self.down_proj
        )

    @staticmethod
    def used_rows(_rows_RD: Tensor, _row_weights_R: Tensor, rows_per_expert_e: Tensor) -> int:
        """Rows of the output that were written, for who looks at its values."""
        return int(rows_per_expert_e.sum())
