"""Spikes: a finite loss or gradient norm far above those of the steps before.

Every rank judges the same figures, means over all ranks that come out of one reduction, by the same
arithmetic and the same window: all decide alike without asking each other.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dsv3.config.health import HealthConfig

NORMAL_DEVIATIONS_PER_MAD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


class Spike(NamedTuple):
    """A figure above its limit, both in the figure's own unit."""

    figure: str  # "loss" or "grad_norm"
    value: float
    limit: float

    def __str__(self) -> str:
        return f"the {self.figure} is {self.value:.4g}, above {self.limit:.4g}"


class Scale(NamedTuple):
    """A scale on which the figure of healthy steps spreads evenly, and the way back.

    A deviation below `smallest` counts as that: where steps hardly differ, a limit would be near.
    """

    onto: Callable[[float], float]
    back: Callable[[float], float]
    smallest: float


# Losses spread by a difference, norms by a factor. Norms have a heavy tail: in small batches of
# healthy runs one is 60 times the median while the typical one is within a tenth of it.
SCALES: Mapping[str, Scale] = {
    "loss": Scale(float, float, 0.02),
    "grad_norm": Scale(
        lambda norm: math.log(norm) if norm > 0 else -math.inf, math.exp, math.log(2)
    ),
}


class Spikes:
    """Windows over the figures of the last accepted steps.

    A value that is not finite or was refused never enters: it can spoil no later judgement. Median
    and median absolute deviation do not follow the few spikes that were only reported.
    """

    def __init__(self, health: HealthConfig, state: Mapping[str, Any] | None = None) -> None:
        """Start, or go on from what `state` returned."""
        self._deviations = health.spike_deviations
        self._fewest = health.spike_window_steps // 4
        self._windows = {
            figure: deque([] if state is None else state[figure], maxlen=health.spike_window_steps)
            for figure in SCALES
        }

    def find(self, figures: Mapping[str, float]) -> list[Spike]:
        """The figures that are above their limits; none while a window holds less than a quarter.

        Only upwards: a fall of the loss is what training is for.
        """
        found: list[Spike] = []
        for figure, scale in SCALES.items():
            limit = self._limit(self._windows[figure], scale.smallest)
            if scale.onto(figures[figure]) > limit:
                found.append(Spike(figure, figures[figure], scale.back(limit)))
        return found

    def accept(self, figures: Mapping[str, float]) -> None:
        """Take the figures of a step that was made."""
        for figure, scale in SCALES.items():
            value = scale.onto(figures[figure])
            if math.isfinite(value):
                self._windows[figure].append(value)

    def state(self) -> dict[str, list[float]]:
        """JSON for the checkpoint, without loss of a bit."""
        return {figure: list(window) for figure, window in self._windows.items()}

    def _limit(self, window: deque[float], smallest: float) -> float:
        if len(window) < self._fewest:
            return math.inf
        values = np.array(window)
        median = np.median(values)
        mad = np.median(np.abs(values - median))
        deviation = max(NORMAL_DEVIATIONS_PER_MAD * float(mad), smallest)
        return float(median) + self._deviations * deviation
