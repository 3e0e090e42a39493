"""The one evaluator of every schedule: piecewise functions of tokens seen; torch-free."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

from pydantic import model_validator

from dsv3.config.section import Section, field

Shape = Literal["constant", "linear", "cosine"]


class Phase(Section):
    """One piece of a curve: it begins beyond the end of the previous one and includes `until`."""

    until: int = field("Where the phase ends, in tokens on the reference axis.", gt=0)
    shape: Shape = field(
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
        if tokens <= 0:
            return self.start
        return next((piece.at(tokens) for piece in self.pieces if tokens <= piece.end), self.last)

    def beyond(self, tokens: float) -> float:
        """Value just after `tokens`: where a phase ends, that of the next one."""
        return next((piece.at(tokens) for piece in self.pieces if tokens < piece.end), self.last)

    @property
    def pieces(self) -> Iterator["Piece"]:
        """The phases, each with where it begins."""
        begin, value = 0, self.start
        for phase in self.phases:
            yield Piece(begin, phase.until, phase.shape, value, phase.value)
            begin, value = phase.until, phase.value

    @property
    def last(self) -> float:
        """The value beyond the last phase."""
        return self.phases[-1].value if self.phases else self.start


class Piece(NamedTuple):
    """A phase between `begin` and `end`, on the reference axis; it moves between two values."""

    begin: int
    end: int
    shape: Shape
    start: float
    value: float

    def at(self, tokens: float) -> float:
        """Value at `tokens`, which lie in the piece."""
        progress = (tokens - self.begin) / (self.end - self.begin)
        match self.shape:
            case "constant":
                return self.value
            case "linear":
                return self.start + (self.value - self.start) * progress
            case "cosine":
                return self.value + (self.start - self.value) * 0.5 * (
                    1 + math.cos(math.pi * progress)
                )
