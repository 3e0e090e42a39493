"""`precision`: the arithmetic of the forward and backward pass."""

from typing import Literal

from dsv3.config.section import Section, field


class PrecisionConfig(Section):
    """Master weights and reductions are FP32 in every recipe."""

    recipe: Literal["fp32", "bf16"] = field("Arithmetic of the matrix products.")
    dispatch: Literal["weights", "fp8"] = field(
        "Format of tokens on their way to the experts: the type of the weights, or FP8 (E4M3, a"
        " power-of-two scale for each 1 x 128 tile); results come back in the type of the weights."
    )
