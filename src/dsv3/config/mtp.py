"""`mtp`: multi-token prediction."""

from typing import Literal

from dsv3.config.section import Section, field


class MtpConfig(Section):
    """Multi-token prediction (report section 2.2)."""

    num_nextn_predict_layers: int = field(
        "Depth D: modules, each predicting one token further; 0 is off.", ge=0
    )
    loss_coeff: float = field("Peak of lambda, the weight of the mean loss of the modules.", ge=0)
    input: Literal["normed", "residual"] = field(
        "What the first module takes from the main model. `normed`: after the final norm, as the"
        " released weights are used; `residual`: before it."
    )
