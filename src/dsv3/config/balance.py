"""`balance`: what keeps the experts evenly loaded."""

from typing import Literal

from dsv3.config.section import Section, field


class BalanceConfig(Section):
    """One arm of the load-balancing ablation (report section 2.1.2)."""

    strategy: Literal["none", "aux_free"] = field(
        "`none`: nothing; `aux_free`: the expert bias of the auxiliary-loss-free strategy."
    )
    bias_update_speed: float = field(
        "Peak of gamma, the step of the expert bias per optimizer step.", ge=0
    )
