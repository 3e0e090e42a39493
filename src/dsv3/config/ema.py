"""`ema`: an exponential moving average of the parameters, in the memory of the host."""

from dsv3.config.section import Section, field


class EmaConfig(Section):
    """What `dsv3 eval --ema` evaluates; training does not use it (report section 3.2.3)."""

    decay: float | None = field(
        "What a step leaves of the average, which starts as the initial weights; null: there is"
        " none. Costs 4 bytes of host memory per parameter (8 beside a GPU), shared out as ZeRO"
        " shares the masters.",
        gt=0,
        lt=1,
    )
