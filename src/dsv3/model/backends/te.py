"""Layers of NVIDIA's Transformer Engine, on GPUs: BF16, and the FP8 recipes of the hardware.

What of it is used, and why not the rest, is in docs/transformer-engine.md.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsv3.config.precision import PrecisionConfig
from dsv3.model.backends.te_log import watch_products
from dsv3.model.backends.te_products import Product, fill_up
from dsv3.model.backends.te_recipes import load_engine, recipe_of, row_multiple_of
from dsv3.model.backends.torch import TorchExperts
from dsv3.ops.attention import causal_attention
from dsv3.ops.swiglu import weighted_swiglu

FUSED_HEADS = (192, 128)
"""Widths of a head's keys and values, for which its attention is used: those of DeepSeek-V2 and V3,
where torch's kernels of one width for both do not serve."""


class TransformerEngineBackend:
    """The layers of one precision recipe; raises CapacityError where they cannot run."""

    def __init__(self, precision: PrecisionConfig) -> None:
        self.engine = load_engine(precision)
        self.precision = precision
        self.recipe = recipe_of(precision)
        self._attentions: dict[tuple[int, float], Any] = {}
        watch_products()

    def linear(self, in_features: int, out_features: int) -> nn.Module:
        """y = x W^T with `weight` [out, in], without a bias."""
        return EngineLinear(self, in_features, out_features)

    def rms_norm(self, width: int, eps: float) -> nn.Module:
        """x / rms(x) * `weight` [width], statistics in FP32."""
        return EngineRmsNorm(self.engine, width, eps)

    def experts(self, num_experts: int, hidden_size: int, intermediate_size: int) -> nn.Module:
        """Networks of the local experts; see `Backend.experts`."""
        return EngineExperts(self, num_experts, hidden_size, intermediate_size)

    def row_multiple(self, experts: nn.Module) -> int:
        """16 in FP8, 32 in MXFP8: rows are what the gradient of a weight sums over."""
        return row_multiple_of(self.precision)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """Causal attention of [B, H, S, d] queries and keys over [B, H, S, V] values."""
        if (q.shape[-1], v.shape[-1]) != FUSED_HEADS or q.dtype == torch.float32:
            return causal_attention(q, k, v, scale=scale)
        attend = self._attention_of(q.shape[1], scale)
        q_BSHd, k_BSHd, v_BSHV = (x.transpose(1, 2).contiguous() for x in (q, k, v))
        out: Tensor = attend(q_BSHd, k_BSHd, v_BSHV)
        return out.view(v_BSHV.shape).transpose(1, 2)

    def prepare(self, model: nn.Module) -> None:
        """Tell the layers their names, and let their weights have FP32 gradients."""
        for name, layer in model.named_modules():
            if isinstance(layer, EngineLinear | EngineExperts):
                layer.be_called(name)
                for weight in layer.parameters():
                    weight.grad_dtype = torch.float32

    def product(self) -> Product:
        """A product in this recipe."""
        return Product(self.engine, self.precision, self.recipe)

    def _attention_of(self, heads: int, scale: float) -> Any:
        """Transformer Engine's attention has no weights; one serves all layers of a shape."""
        if (heads, scale) not in self._attentions:
            self._attentions[heads, scale] = self.engine.DotProductAttention(
                num_attention_heads=heads,
                kv_channels=FUSED_HEADS,
                attention_dropout=0.0,
                qkv_format="bshd",
                attn_mask_type="causal",
                softmax_scale=scale,
            )
        return self._attentions[heads, scale]


class EngineLinear(nn.Module):
    """y = x W^T."""

    def __init__(
        self, backend: TransformerEngineBackend, in_features: int, out_features: int
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.product = backend.product()
        self.product.adopt(
            backend.engine.Linear(
                in_features,
                out_features,
                fuse_wgrad_accumulation=True,
                init_method=_leave,
                bias=False,
                params_dtype=torch.bfloat16,
                device="cuda",
            ),
            ["weight"],
        )

    def be_called(self, name: str) -> None:
        """Note products under this name."""
        self.product.layer = name

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        rows = x.flatten(0, -2)
        out = self.product(fill_up(rows, self.product.row_multiple), self.weight)
        return out[: rows.shape[0]].view(*x.shape[:-1], -1)


class EngineRmsNorm(nn.Module):
    """x / rms(x) * weight."""

    def __init__(self, engine: Any, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        # Not registered: its weight is ours, under our name alone.
        self.__dict__["norm"] = engine.RMSNorm(
            width, eps=eps, dtype=torch.bfloat16, zero_centered_gamma=False, device="cuda"
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        norm = self.__dict__["norm"]
        if norm.weight is not self.weight:
            norm.weight = self.weight
        out: Tensor = norm(x)
        return out


class EngineExperts(TorchExperts):
    """SwiGLU networks of the local experts, their weights stacked."""

    def __init__(
        self,
        backend: TransformerEngineBackend,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
    ) -> None:
        super().__init__(num_experts, hidden_size, intermediate_size)
        widths = ((hidden_size, 2 * intermediate_size), (intermediate_size, hidden_size))
        self.gate_up, self.down = (backend.product() for _ in widths)
        for product, (width_in, width_out) in zip((self.gate_up, self.down), widths, strict=True):
            grouped = backend.engine.GroupedLinear(
                num_experts,
                width_in,
                width_out,
                fuse_wgrad_accumulation=True,
                init_method=_leave,
                bias=False,
                params_dtype=torch.bfloat16,
                device="cuda",
                single_grouped_weight=False,
                use_grouped_tensor=False,
            )
            product.adopt(grouped, [f"weight{expert}" for expert in range(num_experts)])

    def be_called(self, name: str) -> None:
        """Note products under the names of the two projections."""
        self.gate_up.layer, self.down.layer = f"{name}.gate_up_proj", f"{name}.down_proj"

    def counts(self, _rows_RD: Tensor, rows_per_expert_e: Tensor) -> list[int]:
        """Rows of each expert; this waits for the device."""
        found: list[int] = rows_per_expert_e.tolist()
        return found

    def forward(self, rows_RD: Tensor, row_weights_R: Tensor, rows_per_expert_e: Tensor) -> Tensor:
        """Rows sorted by expert in, the same rows through their expert and weighted out.

        Rows of weight zero fill up an expert's; they hold some token's values and, from behind,
        some token's gradient. Both are made zero: they would have a say in the scales of tiles
        that they share with others. Rows beyond the last expert's are zero in the result.
        """
        counts = self.counts(rows_RD, rows_per_expert_e)
        used = sum(counts)
        x_RD, weights_R = rows_RD[:used], row_weights_R[:used]
        if used == 0:
            # A rank without a token computes with some zeros: its part in the exchange of
            # gradients must be there, and its weights have a gradient, of zeros.
            counts[0] = self.gate_up.row_multiple
            x_RD, weights_R = F.pad(x_RD, (0, 0, 0, counts[0])), F.pad(weights_R, (0, counts[0]))
        # A real row whose weight has underflowed to zero goes with them: its output is zero too.
        real_R1 = (weights_R != 0).unsqueeze(1) if self.gate_up.row_multiple > 1 else None
        h_RF = self.gate_up(_only(real_R1, x_RD), self.gate_up_proj, counts)
        out_RD = self.down(weighted_swiglu(h_RF, weights_R), self.down_proj, counts)
        out_RD = _only(real_R1, out_RD)[:used]
        return F.pad(out_RD, (0, 0, 0, rows_RD.shape[0] - used))


def _only(real_R1: Tensor | None, rows_RD: Tensor) -> Tensor:
    """The rows that are real, zeros elsewhere; in the gradient too."""
    return rows_RD if real_R1 is None else torch.where(real_R1, rows_RD, 0)


def _leave(_weight: Tensor) -> None:
    """An `init_method`: the weights are ours, and `materialise` draws them."""
