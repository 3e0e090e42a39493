"""Intervals, errors and power of a sweep on numbers whose distribution is known.

Each frequency is of N independent simulations. It may be off by 4 standard errors of the binomial,
sqrt(p (1 - p) / N): a sound test fails once in 16,000 times, and seeds are fixed.
"""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from dsv3.config.recipe import Rule
from dsv3.sweep import statistics
from dsv3.sweep.statistics import BETTER, NO_DIFFERENCE, WORSE, compare

SWEEPS = 2000
RULE = Rule(better="lower")


def assert_frequency(hits, expected, n=SWEEPS):
    margin = 4 * math.sqrt(expected * (1 - expected) / n)
    assert abs(hits / n - expected) < margin, f"{hits / n} is not {expected} +- {margin}"


def simulate(effects, *, seeds, sigma, between_seeds=0.0, sweeps=SWEEPS, random_seed=0):
    """Sweeps [N, arms + 1, seeds]: what a seed does to all arms, plus each arm's effect and noise.

    The baseline comes first, without an effect.
    """
    draw = np.random.default_rng(random_seed)
    shared_NS = draw.normal(0, between_seeds, (sweeps, 1, seeds))
    noise_NAS = draw.normal(0, sigma, (sweeps, len(effects) + 1, seeds))
    return 3.0 + shared_NS + noise_NAS + np.array([0.0, *effects])[:, None]


def as_values(row):
    return dict(enumerate(row.tolist(), start=1))


def comparisons_of(sweep, rule=RULE):
    base, *arms = map(as_values, sweep)
    return [compare(arm, base, rule, comparisons=len(arms)) for arm in arms]


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_an_interval_covers_the_true_difference_as_often_as_it_says(seeds, confidence):
    rule = Rule(better="lower", confidence=confidence)
    effect, hits = 0.03, 0
    for sweep in simulate([effect], seeds=seeds, sigma=0.02, between_seeds=0.5):
        (found,) = comparisons_of(sweep, rule)
        hits += found.interval.low <= effect <= found.interval.high
    assert_frequency(hits, confidence)


@pytest.mark.parametrize("arms", [2, 5])
def test_all_intervals_of_a_sweep_hold_together(arms):
    effects = np.linspace(-0.02, 0.05, arms)
    held = 0
    for sweep in simulate(effects, seeds=4, sigma=0.02, sweeps=SWEEPS):
        found = comparisons_of(sweep)
        held += all(
            f.interval.low <= effect <= f.interval.high
            for f, effect in zip(found, effects, strict=True)
        )
    # Bonferroni promises at least so much; a shared baseline makes it more, though not much more.
    floor = 4 * math.sqrt(0.95 * 0.05 / SWEEPS)
    assert 0.95 - floor < held / SWEEPS < 0.985


def test_arms_without_an_effect_are_seldom_told_apart():
    wrong = 0
    for sweep in simulate([0.0] * 5, seeds=5, sigma=0.02, between_seeds=1.0):
        wrong += any(f.verdict != NO_DIFFERENCE for f in comparisons_of(sweep))
    assert wrong / SWEEPS < 0.05 + 4 * math.sqrt(0.05 * 0.95 / SWEEPS)
    # And without the correction five comparisons would err far more often than once in 20.
    lone = 0
    for sweep in simulate([0.0] * 5, seeds=5, sigma=0.02, sweeps=500):
        base, *arms = map(as_values, sweep)
        lone += any(
            compare(arm, base, RULE, comparisons=1).verdict != NO_DIFFERENCE for arm in arms
        )
    assert lone / 500 > 0.12


@pytest.mark.parametrize(("seeds", "comparisons"), [(2, 1), (3, 4), (5, 1), (5, 5), (12, 3)])
def test_the_detectable_difference_is_detected_as_often_as_it_says(seeds, comparisons):
    sigma = 0.02 * math.sqrt(2)  # of a difference of two runs
    confidence = statistics.confidence_of_each(0.95, comparisons)
    effect = statistics.detectable_difference(sigma, seeds, confidence=confidence, power=0.8)
    seen = 0
    for base, arm in simulate([effect], seeds=seeds, sigma=0.02, between_seeds=0.3):
        found = compare(as_values(arm), as_values(base), RULE, comparisons=comparisons)
        seen += found.verdict in (BETTER, WORSE)
    assert_frequency(seen, 0.8)


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_power_is_the_integral_over_the_spread_that_the_sample_happens_to_have(seeds, confidence):
    """P(|Z + shift| > t s/sigma), s^2 (n - 1)/sigma^2 being chi-squared: no noncentral t at all."""
    shift, df = 2.7, seeds - 1
    critical = stats.t.ppf((1 + confidence) / 2, df)

    def given(squares):
        reach = critical * math.sqrt(squares / df)
        outside = stats.norm.sf(reach - shift) + stats.norm.cdf(-reach - shift)
        return outside * stats.chi2.pdf(squares, df)

    expected = sum(
        integrate.quad(given, low, high, limit=200)[0]
        for low, high in ((0, 1e-4), (1e-4, 1), (1, 20), (20, 200))
    )
    found = statistics.power(shift / math.sqrt(seeds), 1.0, seeds, confidence)
    assert found == pytest.approx(expected, abs=1e-6)  # the quadrature's at the pole of n = 2


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_an_interval_is_scipys_and_the_verdict_its_p_value(seeds):
    for base, arm in simulate([0.02], seeds=seeds, sigma=0.02, between_seeds=1.0, sweeps=200):
        found = compare(as_values(arm), as_values(base), RULE, comparisons=3)
        test = stats.ttest_rel(arm, base)
        # FP64 sums of the same few numbers in another order, near 3, differences near 0.02.
        low, high = test.confidence_interval(1 - 0.05 / 3)
        assert found.interval == pytest.approx((low, high), rel=1e-9, abs=1e-12)
        assert (found.verdict == NO_DIFFERENCE) == (test.pvalue > 0.05 / 3)


def test_pairing_takes_away_what_a_seed_does_to_both():
    seen, unpaired, spreads = 0, 0, []
    for base, arm in simulate([0.05], seeds=5, sigma=0.01, between_seeds=1.0, sweeps=400):
        found = compare(as_values(arm), as_values(base), RULE, comparisons=1)
        seen += found.verdict == WORSE
        unpaired += stats.ttest_ind(arm, base).pvalue < 0.05
        spreads.append((found.sd, statistics.summarize(arm).sd))
    assert seen > 0.98 * 400
    assert unpaired < 0.02 * 400
    paired, of_arm = np.median(spreads, axis=0)
    assert paired < 0.02
    assert of_arm > 0.5


def test_the_pooled_spread_estimates_the_spread_of_each_sample():
    draw = np.random.default_rng(5)
    samples = [draw.normal(mean, 0.3, size) for mean, size in ((0, 400), (50, 700), (-9, 2))]
    n = sum(len(sample) - 1 for sample in samples)
    # The standard error of a standard deviation is sigma / sqrt(2 n).
    assert statistics.pooled_sd(samples) == pytest.approx(0.3, abs=4 * 0.3 / math.sqrt(2 * n))
