"""`precision`: the arithmetic of the forward and backward pass."""

from typing import Literal

from dsv3.config.section import Section, field

Recipe = Literal["fp32", "bf16", "fp8_block", "fp8_current", "mxfp8", "fp8_block_emulated"]
LayerBackend = Literal["torch", "te", "emulated"]


class PrecisionConfig(Section):
    """Master weights and reductions are FP32 in every recipe; weights are BF16 in all but fp32."""

    recipe: Recipe = field(
        "Arithmetic of the products of linear layers and experts. `fp8_block`: FP8 (E4M3) with a"
        " scale for each 1 x 128 of activations and gradients and each 128 x 128 of weights, on"
        " Hopper GPUs; `fp8_block_emulated`: the same values computed without FP8 hardware;"
        " `fp8_current`: one scale for each tensor, gradients in E5M2; `mxfp8`: a scale for each"
        " 1 x 32, on Blackwell GPUs. Embedding, head, router, norms and attention are in FP8 in"
        " none."
    )
    backend: LayerBackend = field(
        "What computes these layers: `torch`, `te` (Transformer Engine, on GPUs), `emulated` (FP8"
        " values in FP32 products, anywhere). Only bf16 leaves a choice."
    )
    dispatch: Literal["weights", "fp8"] = field(
        "Format of tokens on their way to the experts: the type of the weights, or FP8 (E4M3, a"
        " power-of-two scale for each 1 x 128 tile); results come back in the type of the weights."
    )
    scales: Literal["power_of_two", "fp32"] | None = field(
        "Scales of FP8 tiles: rounded so that nothing but E4M3's mantissa is lost, or FP32 as in"
        " most of the report's layers. null without FP8."
    )
    dgrad_tiling: Literal["tile", "block"] | None = field(
        "Scales of the gradients that enter the product for a layer's input (Dgrad), in tiled FP8."
        " `tile`: 1 x 128, the report's; `block`: 128 x 128 (its appendix B.2). null elsewhere."
    )
    accumulate_bits: int | None = field(
        "Emulated FP8: significant bits that a running sum inside a product keeps, cut off after"
        " every 32 terms; about 14 on an H800 (report section 3.3.2). null: FP32.",
        ge=2,
        le=24,
    )
    promote_every: int | None = field(
        "Tiled FP8: terms after which a running sum is added to one in FP32, N_C of the report."
        " null: never; only emulated."
        " Without tiled FP8 null too.",
        ge=32,
    )

    @property
    def is_fp8(self) -> bool:
        """Whether matrix products are in FP8, on hardware that has it or emulated."""
        return self.recipe not in ("fp32", "bf16")

    @property
    def has_fp8_products(self) -> bool:
        """Whether the hardware multiplies FP8 codes, which layers keep; an emulation has none."""
        return self.is_fp8 and self.backend == "te"

    @property
    def is_tiled_fp8(self) -> bool:
        """Whether FP8 has the report's tiles, 1 x 128 and 128 x 128."""
        return self.recipe in ("fp8_block", "fp8_block_emulated")

    @property
    def weights(self) -> Literal["fp32", "bf16"]:
        """The type the model's weights are held in, beside FP32 masters."""
        return "fp32" if self.recipe == "fp32" else "bf16"
