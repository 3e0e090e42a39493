"""Verdicts and figures by the formulas written out, and where there is little to go by."""

import math

import pytest

from dsv3.config.recipe import Rule
from dsv3.sweep import statistics
from dsv3.sweep.statistics import (
    ABOVE_BOUND,
    BETTER,
    NO_DIFFERENCE,
    NO_SPREAD,
    NOT_DECIDED,
    TOO_FEW,
    WITHIN_BOUND,
    WORSE,
    compare,
)

LOWER = Rule(better="lower")
BASE = {1: 3.0, 2: 3.2, 3: 2.9}


def shifted(*by):
    return {seed: BASE[seed] + one for seed, one in zip(BASE, by, strict=True)}


def test_a_comparison_is_the_formulas_written_out():
    found = compare(shifted(0.01, 0.03, 0.02), BASE, LOWER, comparisons=1)
    t_of_2_degrees = 4.302652729911275  # 97.5 %, from a table
    assert found.mean == pytest.approx(0.02)
    assert found.sd == pytest.approx(0.01)
    reach = t_of_2_degrees * 0.01 / math.sqrt(3)
    assert found.interval == pytest.approx((0.02 - reach, 0.02 + reach))
    assert found.differences == pytest.approx({1: 0.01, 2: 0.03, 3: 0.02})
    assert found.unpaired == ()
    # Five textbook figures of the paired t test: 3 pairs, 80 %, 5 %: 3.26 standard deviations.
    assert found.detectable == pytest.approx(3.264 * 0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("better", "shift", "margin", "verdict"),
    [
        ("lower", -0.1, 0.0, BETTER),
        ("lower", 0.1, 0.0, WORSE),
        ("higher", -0.1, 0.0, WORSE),
        ("higher", 0.1, 0.0, BETTER),
        ("lower", 0.001, 0.0, NO_DIFFERENCE),
        ("lower", -0.1, 0.2, NO_DIFFERENCE),  # surely within the margin
        ("lower", 0.1, 0.2, NO_DIFFERENCE),
        ("lower", -0.1, 0.11, BETTER),  # may be beyond it: the interval is +-0.025
        ("lower", 0.1, 0.11, WORSE),
    ],
)
def test_a_verdict_follows_the_rule(better, shift, margin, verdict):
    rule = Rule(better=better, margin=margin)
    arm = shifted(shift - 0.01, shift + 0.01, shift)
    assert compare(arm, BASE, rule, comparisons=1).verdict == verdict


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.0010, 0.0011, 0.0012), WITHIN_BOUND),
        ((0.0040, 0.0041, 0.0042), ABOVE_BOUND),
        ((0.0010, 0.0030, 0.0020), NOT_DECIDED),
        ((0.0, 0.0, 0.0), WITHIN_BOUND),  # bit for bit the baseline
        ((0.002, 0.002, 0.002), NO_SPREAD),
        ((0.001,), TOO_FEW),
    ],
)
def test_under_a_bound_the_arm_itself_is_judged(values, verdict):
    rule = Rule(better="lower", bound=0.0025)
    arm = dict(enumerate(values, start=1))
    found = compare(arm, dict.fromkeys(arm, 0.0), rule, comparisons=1)
    assert found.verdict == verdict
    assert (found.interval is None) == (len(values) < 2)


def test_one_seed_above_the_bound_forbids_within():
    """Of many seeds the mean may be surely below a bound that one of them is not."""
    values = dict(enumerate([0.001] * 30 + [0.0011] * 30 + [0.0026]))
    rule = Rule(better="lower", bound=0.0025)
    found = compare(values, dict.fromkeys(values, 0.0), rule, comparisons=1)
    assert found.interval.high < 0.0025
    assert found.verdict == NOT_DECIDED


@pytest.mark.parametrize(
    ("arm", "pairs", "unpaired"),
    [
        ({}, 0, (1, 2, 3)),
        ({1: 3.0}, 1, (2, 3)),
        ({1: 3.0, 2: math.nan, 3: None}, 1, (2, 3)),
        ({1: 3.0, 2: math.inf, 7: 1.0}, 1, (2, 3, 7)),
    ],
)
def test_fewer_than_two_pairs_decide_nothing(arm, pairs, unpaired):
    found = compare(arm, BASE, LOWER, comparisons=1)
    assert found.verdict == TOO_FEW
    assert len(found.differences) == pairs
    assert found.unpaired == unpaired
    assert (found.mean is None) == (pairs == 0)
    assert found.sd is found.interval is found.detectable is None


def test_only_seeds_of_both_are_compared():
    arm = {1: 2.0, 2: 2.2001, 3: 2.0, 4: 100.0}
    found = compare(arm, {**BASE, 3: None}, LOWER, comparisons=1)
    assert found.differences == pytest.approx({1: -1.0, 2: -0.9999})
    assert found.unpaired == (3, 4)
    assert found.verdict == BETTER


def test_bit_equal_arms_do_not_differ():
    found = compare(dict(BASE), BASE, LOWER, comparisons=5)
    assert found.verdict == NO_DIFFERENCE
    assert (found.mean, found.sd, found.detectable) == (0, 0, 0)
    assert found.interval == (0, 0)


def test_arms_that_differ_by_rounding_do_not_differ():
    """Every difference is one unit in the last place, and of one sign."""
    base = {1: 3.0, 2: 3.2, 3: 2.9}
    arm = {seed: math.nextafter(value, 9.0) for seed, value in base.items()}
    found = compare(arm, base, LOWER, comparisons=1)
    assert found.interval.low > 0
    assert found.verdict == NO_DIFFERENCE


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_a_constant_difference_is_no_proof(better):
    """Without spread the t interval is a point: rounding alone would decide."""
    found = compare(shifted(0.1, 0.1, 0.1), BASE, Rule(better=better), comparisons=1)
    assert found.verdict == NO_SPREAD
    assert found.interval.high - found.interval.low < 1e-14


def test_the_interval_widens_with_the_arms_compared():
    arm = shifted(-0.01, -0.02, -0.03)
    alone, of_six = (compare(arm, BASE, LOWER, comparisons=n) for n in (1, 6))
    assert of_six.interval.low < alone.interval.low
    assert of_six.detectable > alone.detectable
    assert statistics.confidence_of_each(0.95, 5) == pytest.approx(0.99)
    assert statistics.confidence_of_each(0.95, 0) == 0.95


def test_a_lone_value_has_a_mean_and_no_spread():
    assert statistics.summarize([]) == statistics.Summary(0, None, None)
    assert statistics.summarize([2.0]) == statistics.Summary(1, 2.0, None)
    assert statistics.summarize([2.0, 4.0]) == statistics.Summary(2, 3.0, math.sqrt(2))
    assert statistics.mean_interval([2.0], 0.95) is None


def test_spreads_are_pooled_by_their_degrees_of_freedom():
    samples = [[1.0, 3.0], [10.0, 10.0, 13.0], [5.0], []]
    assert statistics.pooled_sd(samples) == pytest.approx(math.sqrt((2.0 + 6.0) / 3))
    assert statistics.pooled_sd([[5.0], []]) is None


@pytest.mark.parametrize("power", [0.5, 0.8, 0.99, 0.9999])
@pytest.mark.parametrize("n", [2, 3, 5, 50, 5000])
@pytest.mark.parametrize("confidence", [0.6, 0.95, 0.9999])
def test_the_detectable_difference_has_the_power_asked_for(power, n, confidence):
    found = statistics.detectable_difference(0.3, n, confidence=confidence, power=power)
    assert statistics.power(found, 0.3, n, confidence) == pytest.approx(power, abs=1e-9)
    assert statistics.power(-found, 0.3, n, confidence) == pytest.approx(power, abs=1e-9)


def test_less_power_than_chance_needs_no_difference():
    assert statistics.detectable_difference(1.0, 5, confidence=0.9, power=0.05) == 0
    assert statistics.detectable_difference(1.0, 1, confidence=0.9, power=0.8) is None
