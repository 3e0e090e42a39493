"""What a run's schedule sets, step by step: for training, tables and plots alike."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dsv3.config.curves import Curve, Piece, Shape
from dsv3.config.root import RunConfig
from dsv3.config.schedule import ScheduleConfig


class Stage(NamedTuple):
    """One phase of a curve in this run; in it lie the tokens `begin` < t <= `end`.

    The values are those of the curve at the two ends, in absolute units. A phase that falls between
    two steps has none: `steps` is 0, and `first_step` is the one that comes after it.
    """

    first_step: int
    steps: int
    begin: int
    end: int
    shape: Shape
    value_at_begin: float
    value_at_end: float


class Point(NamedTuple):
    """A step, the tokens seen once it is done, and the value in force in it."""

    step: int
    tokens: int
    value: float


@dataclass(frozen=True)
class Scheduled:
    """A quantity that follows a curve; `name` is its key in metrics.jsonl."""

    name: str
    title: str
    peak: float
    curve: Curve
    schedule: ScheduleConfig

    def in_force(self, tokens_before: int, tokens_after: int) -> float:
        """Absolute value for the step between these token counts."""
        del tokens_before  # the batch alone is chosen where a step begins
        return self.peak * self.schedule.fraction_at(self.curve, tokens_after)

    def stages(self) -> list[Stage]:
        """The phases of the curve, one at least."""
        s = self.schedule
        whole = Piece(0, s.reference_tokens, "constant", self.curve.start, self.curve.start)
        pieces = list(self.curve.pieces) or [whole]
        firsts = [self._first_step(piece.begin) for piece in pieces] + [s.num_steps + 1]
        return [
            Stage(
                first_step=first,
                steps=following - first,
                begin=piece.begin * s.total_tokens // s.reference_tokens,
                end=piece.end * s.total_tokens // s.reference_tokens,
                shape=piece.shape,
                value_at_begin=self._absolute(
                    piece.value if piece.shape == "constant" else piece.start
                ),
                value_at_end=self._absolute(piece.value),
            )
            for piece, first, following in zip(pieces, firsts, firsts[1:], strict=False)
        ]

    def points(self, count: int) -> list[Point]:
        """About `count` steps, evenly over the run, and the first and last of each phase."""
        last = self.schedule.num_steps
        steps = {1 + (last - 1) * part // max(1, count - 1) for part in range(count)}
        for edge in self._edges():
            steps |= {edge - 1, edge}
        return [self._point(step) for step in sorted(steps) if 1 <= step <= last]

    def _edges(self) -> Sequence[int]:
        return [stage.first_step for stage in self.stages()]

    def _point(self, step: int) -> Point:
        before, after = self.schedule.tokens_before(step), self.schedule.tokens_before(step + 1)
        return Point(step, after, self.in_force(before, after))

    def _first_step(self, begin: int) -> int:
        """First step that takes a value beyond `begin` on the reference axis."""
        steps = range(1, self.schedule.num_steps + 1)
        return 1 + bisect_left(steps, True, key=lambda step: self._is_beyond(step, begin))

    def _is_beyond(self, step: int, begin: int) -> bool:
        return self.schedule.on_reference_axis(self.schedule.tokens_before(step + 1)) > begin

    def _absolute(self, fraction: float) -> float:
        return self.peak * fraction


class BatchSize(Scheduled):
    """Sequences per step: whole quanta, chosen where the step begins."""

    def in_force(self, tokens_before: int, tokens_after: int) -> float:
        """Sequences of the step that begins at `tokens_before`."""
        del tokens_after
        return self.schedule.batch_size_at(tokens_before)

    def _edges(self) -> Sequence[int]:
        return [stretch.step for stretch in self.schedule.stretches]

    def _is_beyond(self, step: int, begin: int) -> bool:
        return self.schedule.on_reference_axis(self.schedule.tokens_before(step)) >= begin

    def _absolute(self, fraction: float) -> float:
        return self.schedule.whole_quanta(fraction)


def scheduled(config: RunConfig) -> tuple[Scheduled, ...]:
    """Everything that follows a curve in this run; lambda only where there are MTP modules."""
    s, balance, mtp = config.schedule, config.balance, config.mtp
    found = (
        Scheduled("lr", "learning rate", s.lr, s.lr_curve, s),
        BatchSize(
            "batch_size", "batch size (sequences)", s.global_batch_size, s.batch_size_curve, s
        ),
        Scheduled(
            "bias_update_speed",
            "bias update speed (gamma)",
            balance.bias_update_speed,
            s.bias_update_speed_curve,
            s,
        ),
        Scheduled(
            "mtp_loss_coeff",
            "MTP loss weight (lambda)",
            mtp.loss_coeff,
            s.mtp_loss_coeff_curve,
            s,
        ),
    )
    return found if mtp.num_nextn_predict_layers > 0 else found[:-1]


def in_force(config: RunConfig, *, tokens_before: int, tokens_after: int) -> dict[str, float]:
    """Name and absolute value of everything scheduled, for the step between these counts."""
    return {each.name: each.in_force(tokens_before, tokens_after) for each in scheduled(config)}
