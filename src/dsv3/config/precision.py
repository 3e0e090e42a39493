"""`precision`: the arithmetic of the forward and backward pass."""

from typing import Literal

from dsv3.config.section import Section, field


class PrecisionConfig(Section):
    """Master weights, moments and reductions are FP32 in every recipe."""

    recipe: Literal["fp32", "bf16"] = field("Arithmetic of the matrix products.")
