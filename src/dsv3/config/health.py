"""`health`: what a run does about a step that is not sound, and what it watches."""

from typing import Literal

from dsv3.config.section import Section, field


class HealthConfig(Section):
    """Policies for bad steps, and limits beyond which a run reports an event.

    The policies and the windows they judge by change what is computed; the limits for the load and
    the check of the replicas do not.
    """

    on_non_finite: Literal["stop", "skip", "rollback"] = field(
        "What follows a NaN or an infinity in loss or gradient norm. `stop`: exit code 5; `skip`:"
        " the batch is left out; `rollback`: back to the last checkpoint, and the batch is left out"
        " when it comes again. The update is never made."
    )
    on_spike: Literal["report", "stop", "skip", "rollback"] = field(
        "What follows a finite loss or gradient norm far above those before. `report`: an event;"
        " the others as for `on_non_finite`."
    )
    spike_window_steps: int = field(
        "Steps whose loss and gradient norm the next one is judged by; from a quarter of them on.",
        ge=8,
    )
    spike_deviations: float = field(
        "A spike is further above the median than this many standard deviations, as estimated from"
        " the median absolute deviation; of the loss, and of the logarithm of the gradient norm.",
        gt=0,
    )
    largest_skips: int = field(
        "Steps in a row that may be refused and skipped; with one more the run stops.", ge=1
    )
    largest_rollbacks: int = field(
        "Rollbacks in a row to the same checkpoint; with one more the run stops.", ge=1
    )
    replica_check_steps: int | None = field(
        "Steps between checks that every rank's weights are those of the masters; a check is also"
        " made before a checkpoint. null: never.",
        gt=0,
    )
    window_steps: int = field(
        "Steps over which expert load is summed before it is judged; windows are consecutive.", gt=0
    )
    lowest_load_entropy: float = field(
        "Alarm `collapse` below this entropy of a layer's load, as a fraction of the even load's.",
        ge=0,
        le=1,
    )
    largest_bias_spread: float = field(
        "Alarm `bias_runaway` when the largest and smallest bias of a layer are further apart.",
        gt=0,
    )
    largest_saturation: float = field(
        "Alarm `saturation` when a larger fraction of a layer's scores is within 0.01 of 0 or 1.",
        gt=0,
        le=1,
    )
    largest_fp8_overflow: float = field(
        "Alarm `fp8_overflow` when a larger share of an operand of a layer is cut to the largest"
        " FP8 number; looked at in the last step of each window.",
        ge=0,
        le=1,
    )
    largest_fp8_underflow: float = field(
        "Alarm `fp8_underflow` when a larger share of an operand of a layer is not zero, but is in"
        " FP8.",
        ge=0,
        le=1,
    )

    @property
    def rolls_back(self) -> bool:
        """Whether some policy goes back to a checkpoint, so that there must always be one."""
        return "rollback" in (self.on_non_finite, self.on_spike)
