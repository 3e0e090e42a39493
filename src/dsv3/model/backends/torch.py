"""Plain torch layers, in the type of their weights; FP32 and BF16 on any device."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsv3.ops.experts import grouped_mlp


class TorchBackend:
    """The layers as torch has them; the reference every other backend is compared with."""

    def linear(self, in_features: int, out_features: int) -> nn.Module:
        """y = x W^T with `weight` [out, in], without a bias."""
        return nn.Linear(in_features, out_features, bias=False)

    def rms_norm(self, width: int, eps: float) -> nn.Module:
        """x / rms(x) * `weight` [width], statistics in FP32."""
        return nn.RMSNorm(width, eps=eps)

    def experts(self, num_experts: int, hidden_size: int, intermediate_size: int) -> nn.Module:
        """Networks of the local experts; see `Backend.experts`."""
        return TorchExperts(num_experts, hidden_size, intermediate_size)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """Causal attention of [B, S, H, d] queries and keys over [B, S, H, V] values."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return out.transpose(1, 2)


class TorchExperts(nn.Module):
    """SwiGLU networks of the local experts, their weights stacked."""

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(
            torch.empty(num_experts, 2 * intermediate_size, hidden_size)
        )
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, intermediate_size))

    def forward(
        self, rows_RD: Tensor, row_weights_R: Tensor, tokens_per_expert_e: Tensor
    ) -> Tensor:
        """Rows sorted by expert in, the same rows through their expert and weighted out."""
        return grouped_mlp(
            rows_RD, row_weights_R, tokens_per_expert_e, self.gate_up_proj, self.down_proj
        )
