"""From the curves of runs to one line with a band for each arm, on one grid of tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dsv3.report.metrics import smoothed
from dsv3.report.study import Study, StudyRun

Values = NDArray[np.float64]
LARGEST_GRID, SMALLEST_GRID, POINTS_OF_A_FIGURE = 240, 60, 2400


@dataclass(frozen=True)
class Line:
    """The mean over `seeds` runs of an arm; `low` and `high` are None for a single run."""

    arm: str
    tokens: Values
    mean: Values
    low: Values | None
    high: Values | None
    seeds: int


def lines(study: Study, figure: str) -> list[Line]:
    """A smoothed figure of every arm that has it: mean over seeds, one standard deviation around.

    Unfinished runs count where an arm has no finished one, and then as far as all of them are.
    """
    grid = _grid(study, figure)
    found = []
    for arm in study.record.arms:
        curves = [run.curves[figure] for run in _shown(study, arm, figure)]
        found += _line(arm, grid, [_on_grid(c.tokens, smoothed(c.values), grid) for c in curves])
    return found


def differences(study: Study, figure: str) -> list[Line]:
    """The same for arm - baseline, seed by seed."""
    return _paired(study, figure, lambda ours, theirs: ours - theirs)


def relative_errors(study: Study, figure: str = "loss") -> list[Line]:
    """|arm - baseline| / baseline of the smoothed figure, seed by seed, in percent."""
    found = _paired(study, figure, lambda ours, theirs: 100 * np.abs(ours - theirs) / theirs)
    return [line if line.low is None else replace(line, low=line.low.clip(0)) for line in found]


def _paired(study: Study, figure: str, of: Callable[[Values, Values], Values]) -> list[Line]:
    grid = _grid(study, figure)
    baseline = {run.seed: run for run in _shown(study, study.record.baseline, figure)}
    found = []
    for arm in study.record.arms:
        if arm == study.record.baseline:
            continue
        values = []
        for run in _shown(study, arm, figure):
            if run.seed in baseline:
                both = (run.curves[figure], baseline[run.seed].curves[figure])
                on_grid = (_on_grid(c.tokens, smoothed(c.values), grid) for c in both)
                values.append(of(*on_grid))
        found += _line(arm, grid, values)
    return found


def _shown(study: Study, arm: str, figure: str) -> Sequence[StudyRun]:
    having = [run for run in study.of_arm(arm) if figure in run.curves]
    return [run for run in having if run.done] or having


def _grid(study: Study, figure: str) -> Values:
    """Edges of the bins: no more of them than steps, nor than a figure of so many arms can bear."""
    curves = [run.curves[figure] for run in study.runs if figure in run.curves]
    if not curves:
        return np.zeros(0)
    bearable = POINTS_OF_A_FIGURE // len(study.record.arms)
    bins = min(max(bearable, SMALLEST_GRID), LARGEST_GRID, max(len(c.steps) for c in curves))
    return np.linspace(0, max(int(c.tokens[-1]) for c in curves), bins + 1)


def _on_grid(tokens: NDArray[np.int64], values: Values, edges: Values) -> Values:
    """Mean of each bin; empty ones between two others are interpolated, others are NaN."""
    bins = len(edges) - 1
    place = np.clip(np.searchsorted(edges, tokens, side="left") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    sums = np.bincount(place, weights=values, minlength=bins)
    there = np.flatnonzero(counts)
    means = sums[there] / counts[there]
    return np.interp(np.arange(bins), there, means, left=np.nan, right=np.nan)


def _line(arm: str, edges: Values, values: Sequence[Values]) -> list[Line]:
    """The line of an arm where all its runs are; none if that is nowhere."""
    if not values:
        return []
    stacked = np.stack(values)
    known = np.isfinite(stacked).all(0)
    if not known.any():
        return []
    tokens, stacked = edges[1:][known], stacked[:, known]
    mean = stacked.mean(0)
    if len(values) == 1:
        return [Line(arm, tokens, mean, None, None, 1)]
    sd = stacked.std(0, ddof=1)
    return [Line(arm, tokens, mean, mean - sd, mean + sd, len(values))]
