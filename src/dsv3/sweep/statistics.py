"""What a sweep can say about its arms: paired differences, their noise, and verdicts by a rule.

Arms are compared seed by seed: runs of one seed share initial weights and the order of samples, so
that what a seed does to both cancels. docs/statistics.md has the formulas and what they assume.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from dsv3.config.recipe import Rule

BETTER, WORSE, NO_DIFFERENCE = "better", "worse", "no difference at this noise"
WITHIN_BOUND, ABOVE_BOUND = "within the bound", "above the bound"
NOT_DECIDED = "not decided at this noise"
TOO_FEW = "not decided: fewer than 2 seeds"
NO_SPREAD = "not decided: no spread between seeds to compare with"

# Differences of FP64 figures that are the same number come out this far apart, relative to them.
_ROUNDING = 1e-12
# Standard errors: the power of every test of 2 values or more is 1 to rounding long before.
_LARGEST_SHIFT = 1e9

Values = Mapping[int, float | None]
"""Seed -> figure; None or NaN where a run has none."""


class Interval(NamedTuple):
    """Two ends of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """Figures of one arm over its seeds; `sd` is the sample's (n - 1), None for fewer than 2."""

    n: int
    mean: float | None
    sd: float | None


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline, over the seeds that both have.

    `differences` are arm - baseline by seed; `unpaired` the seeds that only one of them has.
    `interval` is that of the mean difference, or under a bound of the arm's mean; `detectable` the
    smallest true difference (under a bound: distance from it) that this many seeds of this noise
    would show with the rule's power. None where the seeds are too few.
    """

    differences: Mapping[int, float]
    unpaired: tuple[int, ...]
    mean: float | None
    sd: float | None
    interval: Interval | None
    detectable: float | None
    verdict: str | None


def finite(values: Values) -> dict[int, float]:
    """The figures that are there, by seed in order: neither None nor NaN nor infinite."""
    known = ((seed, value) for seed, value in sorted(values.items()) if value is not None)
    return {seed: float(value) for seed, value in known if math.isfinite(value)}


def summarize(values: Sequence[float]) -> Summary:
    """Mean and sample standard deviation of what is there."""
    n = len(values)
    mean = float(np.mean(values)) if n > 0 else None
    return Summary(n, mean, _sd(values) if n > 1 else None)


def pooled_sd(samples: Sequence[Sequence[float]]) -> float | None:
    """sqrt(sum (n_i - 1) s_i^2 / sum (n_i - 1)): one noise for samples with means of their own.

    None if no sample has two values.
    """
    usable = [values for values in samples if len(values) > 1]
    if not usable:
        return None
    squares = sum((len(values) - 1) * _sd(values) ** 2 for values in usable)
    return math.sqrt(squares / sum(len(values) - 1 for values in usable))


def confidence_of_each(confidence: float, comparisons: int) -> float:
    """Confidence of each of several intervals so that all hold together with `confidence`.

    Bonferroni: the errors add up to 1 - `confidence` at most, however the comparisons depend on
    each other; here they share a baseline.
    """
    return 1 - (1 - confidence) / max(comparisons, 1)


def mean_interval(values: Sequence[float], confidence: float) -> Interval | None:
    """Student's t interval of the mean: mean -+ t(1 - alpha/2, n - 1) s / sqrt(n)."""
    if len(values) < 2:
        return None
    reach = _critical(len(values), confidence) * _sd(values) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return Interval(mean - reach, mean + reach)


def power(difference: float, sd: float, n: int, confidence: float) -> float:
    """Chance that a two-sided t test of `n` differences finds a true mean `difference`.

    P(|T| > t(1 - alpha/2, n - 1)) for a noncentral T with shift difference / (sd / sqrt(n)).
    """
    return _power_of_shift(abs(difference) / sd * math.sqrt(n), n, confidence)


def detectable_difference(sd: float, n: int, *, confidence: float, power: float) -> float | None:
    """The true difference that `n` paired seeds show with `power`; None for fewer than 2."""
    if n < 2:
        return None
    if sd == 0 or power <= 1 - confidence:  # with no difference at all the power is alpha
        return 0.0

    def missing(shift: float) -> float:
        return _power_of_shift(shift, n, confidence) - power

    shift = optimize.brentq(missing, 0.0, _largest_shift(n, confidence), xtol=1e-10)
    return float(shift) * sd / math.sqrt(n)


def compare(arm: Values, baseline: Values, rule: Rule, *, comparisons: int) -> Comparison:
    """Compare an arm with the baseline by `rule`, as one of `comparisons` of the sweep.

    Under `rule.bound` it is the arm's own figures that are judged.
    """
    ours, theirs = finite(arm), finite(baseline)
    differences = {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}
    unpaired = tuple(sorted(ours.keys() ^ theirs.keys()))
    values = list(differences.values())
    judged = values if rule.bound is None else list(ours.values())
    scale = max((abs(value) for one in (ours, theirs) for value in one.values()), default=0.0)
    exact = len(judged) > 1 and np.ptp(judged) <= _ROUNDING * scale
    confidence = confidence_of_each(rule.confidence, comparisons)
    interval = mean_interval(judged, confidence)
    spread = None if len(judged) < 2 else 0.0 if exact else _sd(judged)
    detectable = None
    if spread is not None:
        detectable = detectable_difference(
            spread, len(judged), confidence=confidence, power=rule.power
        )
    if interval is None:
        verdict = TOO_FEW
    elif exact and abs(judged[0]) > _ROUNDING * scale:
        verdict = NO_SPREAD
    elif rule.bound is not None:
        verdict = _against_bound(judged, interval, rule.bound)
    else:
        verdict = _against_nothing(interval, rule, exact=bool(exact))
    summary = summarize(values)
    return Comparison(
        differences, unpaired, summary.mean, summary.sd, interval, detectable, verdict
    )


def _against_nothing(interval: Interval, rule: Rule, *, exact: bool) -> str:
    """A verdict on a difference. One that is surely within the margin counts for nothing."""
    counts_for_nothing = max(-interval.low, interval.high) <= rule.margin
    if exact or counts_for_nothing or interval.low <= 0 <= interval.high:
        return NO_DIFFERENCE
    lower = interval.high < 0
    return BETTER if lower == (rule.better == "lower") else WORSE


def _against_bound(values: Sequence[float], interval: Interval, bound: float) -> str:
    """A verdict on the mean of an arm; no seed of one that is within the bound may be above it."""
    if interval.low > bound:
        return ABOVE_BOUND
    return WITHIN_BOUND if max(interval.high, *values) < bound else NOT_DECIDED


def _sd(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1))


def _critical(n: int, confidence: float) -> float:
    """Two-sided critical value of Student's t of `n` values."""
    return float(special.stdtrit(n - 1, (1 + confidence) / 2))


def _power_of_shift(shift: float, n: int, confidence: float) -> float:
    critical = _critical(n, confidence)
    # NaN where a probability is too small to compute.
    not_above, below = np.nan_to_num(special.nctdtr(n - 1, shift, [critical, -critical]))
    return float(1 - not_above + below)


def _largest_shift(n: int, confidence: float) -> float:
    """A shift whose power is above any that can be asked for: doubled until it is."""
    shift = 2.0 + 2 * _critical(n, confidence)
    while _power_of_shift(shift, n, confidence) < 1 - 1e-9 and shift < _LARGEST_SHIFT:
        shift *= 2
    return shift
