"""Layers whose products are in emulated FP8; everything else is as in the torch backend."""

import torch
from torch import Tensor, nn

from dsv3.config.precision import PrecisionConfig
from dsv3.model.backends.torch import TorchBackend, TorchExperts
from dsv3.ops.fp8_experts import fp8_grouped_mlp
from dsv3.ops.fp8_linear import Fp8, fp8_linear


class EmulatedBackend(TorchBackend):
    """Transformer Engine's block scaling on any device: the same tiles, scales and roundings."""

    def __init__(self, precision: PrecisionConfig) -> None:
        assert precision.recipe == "fp8_block_emulated", f"{precision.recipe=}"
        self.fp8 = Fp8(
            power_of_two=precision.scales == "power_of_two",
            dgrad_blocks=precision.dgrad_tiling == "block",
            promote_every=precision.promote_every,
            accumulate_bits=precision.accumulate_bits,
        )

    def linear(self, in_features: int, out_features: int) -> nn.Module:
        """y = x W^T with `weight` [out, in], all three products in FP8."""
        return EmulatedLinear(in_features, out_features, self.fp8)

    def experts(self, num_experts: int, hidden_size: int, intermediate_size: int) -> nn.Module:
        """Networks of the local experts; see `Backend.experts`."""
        return EmulatedExperts(num_experts, hidden_size, intermediate_size, self.fp8)

    def row_multiple(self, experts: nn.Module) -> int:
        """1: zeros that fill up a tile change nothing, so there need be none."""
        return 1

    def prepare(self, model: nn.Module) -> None:
        """Tell the layers their names, and let their weights have FP32 gradients."""
        for name, layer in model.named_modules():
            if isinstance(layer, EmulatedLinear | EmulatedExperts):
                layer.name = name
                for weight in layer.parameters():
                    weight.grad_dtype = torch.float32


class EmulatedLinear(nn.Module):
    """y = x W^T."""

    def __init__(self, in_features: int, out_features: int, fp8: Fp8) -> None:
        super().__init__()
        self.fp8 = fp8
        self.name = ""
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return fp8_linear(x, self.weight, self.fp8, self.name)


class EmulatedExperts(TorchExperts):
    """SwiGLU networks of the local experts, their weights stacked."""

    def __init__(
        self, num_experts: int, hidden_size: int, intermediate_size: int, fp8: Fp8
    ) -> None:
        super().__init__(num_experts, hidden_size, intermediate_size)
        self.fp8 = fp8
        self.name = ""

    def forward(self, rows_RD: Tensor, row_weights_R: Tensor, rows_per_expert_e: Tensor) -> Tensor:
        """Rows sorted by expert in, the same rows through their expert and weighted out."""
        inputs = (rows_RD, row_weights_R, rows_per_expert_e, self.gate_up_proj, self.down_proj)
        return fp8_grouped_mlp(*inputs, (self.fp8, self.name))
