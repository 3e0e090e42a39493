"""`precision`: the arithmetic of the forward and backward pass."""

from typing import Literal

from dsv3.config.section import Section, field


class PrecisionConfig(Section):
    """Master weights and reductions are FP32 in every recipe."""

    recipe: Literal["fp32", "bf16", "fp8_block", "fp8_block_emulated"] = field(
        "Arithmetic of the matrix products. `fp8_block`: FP8 (E4M3) with a scale for each 1 x 128"
        " of activations and gradients and each 128 x 128 of weights, on the GPU;"
        " `fp8_block_emulated`: the same values computed without FP8 hardware. Both compose and"
        " plan; this version trains with neither."
    )
    dispatch: Literal["weights", "fp8"] = field(
        "Format of tokens on their way to the experts: the type of the weights, or FP8 (E4M3, a"
        " power-of-two scale for each 1 x 128 tile); results come back in the type of the weights."
    )
    dgrad_tiling: Literal["tile", "block"] | None = field(
        "Scales of the gradients that enter the product for a layer's input (Dgrad), in FP8."
        " `tile`: 1 x 128, the report's; `block`: 128 x 128 (its appendix B.2). null without FP8."
    )

    @property
    def is_fp8(self) -> bool:
        """Whether matrix products are in FP8, on hardware that has it or emulated."""
        return self.recipe in ("fp8_block", "fp8_block_emulated")
