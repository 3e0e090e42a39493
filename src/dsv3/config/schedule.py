"""`schedule`: how long, how much at once, and the curves over tokens seen."""

import math
from bisect import bisect_left, bisect_right
from functools import lru_cache
from typing import NamedTuple

from dsv3.config.curves import Curve
from dsv3.config.section import Section, field


class Stretch(NamedTuple):
    """Successive steps of one batch size; `step` counts from 1."""

    step: int
    steps: int
    batch_size: int
    tokens_before: int


class ScheduleConfig(Section):
    """Curves are written on `reference_tokens` and stretched to `total_tokens` (the axis only).

    A step that brings the run from t0 to t1 tokens takes every curve at t1, but the batch, which
    decides where t1 is, at t0.
    """

    total_tokens: int = field("Tokens of the run; the last step is the one that reaches it.", gt=0)
    reference_tokens: int = field("Length of the axis the curves are written on.", gt=0)
    sequence_length: int = field("Tokens per sample.", gt=1)
    global_batch_size: int = field("Sequences per optimizer step, over all ranks (peak).", gt=0)
    batch_size_quantum: int = field(
        "The batch follows its curve in multiples of so many sequences.", gt=0
    )
    micro_batch_size: int = field(
        "Sequences per rank in one forward pass, at most: a smaller step has smaller ones, and a"
        " pipeline as many micro batches as fill it.",
        gt=0,
    )
    lr: float = field("Peak learning rate; the curve's values are fractions of it.", gt=0)
    lr_curve: Curve = field("Learning rate over tokens, as a fraction of `lr`.")
    bias_update_speed_curve: Curve = field(
        "Speed of the router bias over tokens, as a fraction of `balance.bias_update_speed`."
    )
    batch_size_curve: Curve = field(
        "Sequences per step over tokens, as a fraction of `global_batch_size`; read where the step"
        " begins."
    )
    mtp_loss_coeff_curve: Curve = field(
        "Weight of the MTP loss over tokens, as a fraction of `mtp.loss_coeff`."
    )

    @property
    def peak_tokens_per_step(self) -> int:
        """Tokens of an optimizer step once the batch has its full size."""
        return self.global_batch_size * self.sequence_length

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """All steps of the run, as stretches of one batch size."""
        return _stretches(self)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run; the last is the one that reaches `total_tokens`."""
        last = self.stretches[-1]
        return last.step + last.steps - 1

    def batch_size_at(self, tokens_before: int) -> int:
        """Sequences of the step that begins at `tokens_before` tokens, over all ranks.

        A step that begins where a phase ends belongs to the next one.
        """
        return self.whole_quanta(
            self.batch_size_curve.beyond(self.on_reference_axis(tokens_before))
        )

    def whole_quanta(self, fraction: float) -> int:
        """Sequences of a batch of about `fraction` of the peak, independent of the layout.

        The nearest multiple of the quantum, at least one quantum and at most the peak.
        """
        quanta = math.floor(fraction * self.global_batch_size / self.batch_size_quantum + 0.5)
        size = max(1, quanta) * self.batch_size_quantum
        return min(size, self.global_batch_size)

    def tokens_before(self, step: int) -> int:
        """Tokens seen when `step`, counted from 1, begins."""
        number = bisect_right(self.stretches, step, key=lambda stretch: stretch.step) - 1
        first, _, batch_size, tokens = self.stretches[number]
        return tokens + (step - first) * batch_size * self.sequence_length

    def micro_batch_size_of(self, share: int, *, at_least: int = 1) -> int:
        """Sequences of each of the equal micro batches that a rank's `share` of a step makes.

        There are `at_least` so many of them, if the share has as many sequences.
        """
        largest = max(min(share // at_least, self.micro_batch_size), 1)
        return next(size for size in range(largest, 0, -1) if share % size == 0)

    def lr_at(self, tokens_after: int) -> float:
        """Learning rate of the step that brings the run to `tokens_after` tokens.

        Taken at the end of the step: the first step of a warm-up from zero has a learning rate.
        """
        return self.lr * self.fraction_at(self.lr_curve, tokens_after)

    def fraction_at(self, curve: Curve, tokens_after: int) -> float:
        """Value of a curve for the step that brings the run to `tokens_after` tokens."""
        return curve.at(self.on_reference_axis(tokens_after))

    def on_reference_axis(self, tokens: int) -> float:
        """Place `tokens` of this run on the axis the curves are written on.

        One division of integers: where the two axes meet exactly, the result is exact, and a phase
        does not end a step early by rounding.
        """
        return tokens * self.reference_tokens / self.total_tokens


@lru_cache(maxsize=1024)
def _stretches(schedule: ScheduleConfig) -> tuple[Stretch, ...]:
    """Walk from one batch size to the next instead of from step to step."""
    found: list[Stretch] = []
    step, tokens = 1, 0
    while tokens < schedule.total_tokens:
        size = schedule.batch_size_at(tokens)
        steps = _steps_of_one_size(schedule, tokens, size)
        found.append(Stretch(step, steps, size, tokens))
        step, tokens = step + steps, tokens + steps * size * schedule.sequence_length
    return tuple(found)


def _steps_of_one_size(schedule: ScheduleConfig, tokens: int, size: int) -> int:
    """Steps from `tokens` on with `size` sequences, within one phase, where a curve is monotone."""
    total, reference = schedule.total_tokens, schedule.reference_tokens
    place = tokens * reference
    ends = [p.until * total for p in schedule.batch_size_curve.phases if p.until * total > place]
    end = min([total, *(-(-until // reference) for until in ends[:1])])
    per_step = size * schedule.sequence_length
    most = -(-(end - tokens) // per_step)

    def differs(steps: int) -> bool:
        return schedule.batch_size_at(tokens + steps * per_step) != size

    reach = 1
    while reach < most and not differs(reach):
        reach *= 2
    return max(1, bisect_left(range(min(reach, most)), True, key=differs))
