"""`optimizer`: AdamW and the clipping of the gradient."""

from typing import Literal

from dsv3.config.section import Section, field


class OptimizerConfig(Section):
    """AdamW over FP32 master weights; norm weights and the router's bias are not decayed."""

    beta1: float = field("Decay of the first moment.", ge=0, lt=1)
    beta2: float = field("Decay of the second moment.", ge=0, lt=1)
    eps: float = field("Added to the root of the second moment.", gt=0)
    weight_decay: float = field("Decoupled weight decay.", ge=0)
    gradient_clipping: float = field("Largest global gradient norm.", gt=0)
    moment_dtype: Literal["fp32", "bf16"] = field(
        "Type in which both moments are kept; they are updated in FP32."
    )
