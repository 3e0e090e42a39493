"""`health`: when the load of the experts is worth an alarm."""

from dsv3.config.section import Section, field


class HealthConfig(Section):
    """Limits beyond which a run reports an event; nothing here changes what is computed."""

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
