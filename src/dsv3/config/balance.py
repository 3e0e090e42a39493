"""`balance`: what keeps the experts evenly loaded."""

from typing import Literal

from dsv3.config.section import Section, field

Strategy = Literal["none", "aux_loss", "aux_loss_v2", "aux_free", "aux_free_seq", "aux_batch"]
BiasUpdateRule = Literal["sign", "zero_mean_sign", "proportional"]
BatchCounts = Literal["exact", "previous_step"]

# Which coefficients an arm uses; the others must be zero in it.
_COEFFS: dict[Strategy, tuple[str, ...]] = {
    "none": (),
    "aux_loss": ("sequence_aux_loss_coeff",),
    "aux_loss_v2": (
        "sequence_aux_loss_coeff",
        "device_aux_loss_coeff",
        "communication_aux_loss_coeff",
    ),
    "aux_free": (),
    "aux_free_seq": ("sequence_aux_loss_coeff",),
    "aux_batch": ("batch_aux_loss_coeff",),
}
COEFFS = tuple(dict.fromkeys(name for names in _COEFFS.values() for name in names))


class BalanceConfig(Section):
    """One arm of the load-balancing ablation (report sections 2.1.2, 4.5.2 and 4.5.3)."""

    strategy: Strategy = field(
        "`none`: nothing; `aux_loss`: loss per sequence (report eq. 17 to 20); `aux_loss_v2`: the"
        " expert, device and communication losses of V2; `aux_free`: the expert bias;"
        " `aux_free_seq`: the bias and the loss per sequence; `aux_batch`: loss per global batch."
    )
    bias_update_speed: float = field(
        "Peak of gamma, the step of the expert bias per optimizer step.", ge=0
    )
    bias_update_rule: BiasUpdateRule = field(
        "`sign`: gamma * sign(mean load - load), the report's; `zero_mean_sign`: the same minus its"
        " mean over experts; `proportional`: gamma * (mean load - load) / mean load."
    )
    sequence_aux_loss_coeff: float = field(
        "Alpha of the loss per sequence; alpha_1 of V2's expert-level loss.", ge=0
    )
    device_aux_loss_coeff: float = field(
        "Alpha_2 of V2's device-level loss; its devices are the `model.n_group` groups.", ge=0
    )
    communication_aux_loss_coeff: float = field(
        "Alpha_3 of V2's communication loss, over the same groups.", ge=0
    )
    batch_aux_loss_coeff: float = field("Alpha of the loss per global batch.", ge=0)
    aux_loss_selection: Literal["top_k_of_scores", "routed"] = field(
        "What the load of an aux loss counts. `top_k_of_scores`: the best experts by score alone,"
        " as printed in eq. 18; `routed`: where tokens go, after bias and group limit."
    )
    aux_loss_scores: Literal["normalised", "plain"] = field(
        "What P of an aux loss averages. `normalised`: scores over their sum (eq. 19); `plain`."
    )
    batch_counts: BatchCounts = field(
        "Load of the loss per global batch. `exact`: of this batch, by a pass without gradients"
        " where a step has several micro batches; `previous_step`: of the step before."
    )

    @property
    def has_expert_bias(self) -> bool:
        """Whether the arm moves the bias of the router."""
        return self.strategy in ("aux_free", "aux_free_seq")

    @property
    def coeffs(self) -> dict[str, float]:
        """The loss coefficients that belong to the arm, by key."""
        return {name: getattr(self, name) for name in _COEFFS[self.strategy]}

    @property
    def foreign_coeffs(self) -> dict[str, float]:
        """Coefficients that are set although the arm has no such loss, by key."""
        others = {name: getattr(self, name) for name in COEFFS if name not in self.coeffs}
        return {name: value for name, value in others.items() if value != 0}
