"""The one evaluator of every schedule: piecewise functions of tokens seen; torch-free."""

import math
from itertools import pairwise
from typing import Literal

from pydantic import model_validator

from dsv3.config.section import Section, field


class Phase(Section):
    """One piece of a curve: it begins beyond the end of the previous one and includes `until`."""

    until: int = field("Where the phase ends, in tokens on the reference axis.", gt=0)
    shape: Literal["constant", "linear", "cosine"] = field(
        "`constant` holds `value` throughout; the others move to it from where the curve is."
    )
    value: float = field("The value at the end of the phase.", ge=0)


class Curve(Section):
    """Phases one after another; the last value holds beyond the last phase."""

    start: float = field("The value at zero tokens.", ge=0)
    phases: tuple[Phase, ...] = field("The pieces, in order of `until`.")

    @model_validator(mode="after")
    def _ordered(self) -> "Curve":
        for before, after in pairwise(self.phases):
            if after.until <= before.until:
                raise ValueError(
                    f"phases must end in rising order, but until={after.until} follows"
                    f" until={before.until}"
                )
        return self

    def at(self, tokens: float) -> float:
        """Value at `tokens` on the reference axis, which may be fractional.

        A phase owns its end and not its begin, so that a step that ends exactly where a phase ends
        still takes the value of the phase its tokens lie in.
        """
        begin, value = 0, self.start
        if tokens <= begin:
            return value
        for phase in self.phases:
            if tokens <= phase.until:
                return _inside(phase, begin, value, tokens)
            begin, value = phase.until, phase.value
        return value


def _inside(phase: Phase, begin: int, value: float, tokens: float) -> float:
    progress = (tokens - begin) / (phase.until - begin)
    match phase.shape:
        case "constant":
            return phase.value
        case "linear":
            return value + (phase.value - value) * progress
        case "cosine":
            return phase.value + (value - phase.value) * 0.5 * (1 + math.cos(math.pi * progress))
