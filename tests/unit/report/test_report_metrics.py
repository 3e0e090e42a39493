"""Figures of a run by their formulas, written out again."""

import math
from typing import get_args

import numpy as np
import pytest
from scipy.spatial import distance

from dsv3.config.recipe import Metric
from dsv3.report.metrics import METRICS, relative_loss_error, specialization, values_of
from unit.report.made_study import curve, load, made_run, made_study


def test_every_metric_of_a_recipe_can_be_read():
    assert set(get_args(Metric)) <= METRICS.keys()
    assert all(info.name == name for name, info in METRICS.items())


def test_figures_of_the_result_are_read_by_seed():
    runs = made_run("base", 1, 2.5), made_run("base", 2, None), made_run("base", 3, 2.25)
    study = made_study(*runs)
    assert values_of(METRICS["loss"], study, "base") == {1: 2.5, 2: None, 3: 2.25}
    assert values_of(METRICS["bpb"], study, "base") == {1: 1.25, 2: None, 3: 1.125}


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"mtp_acceptance": [0.5, 0.25]}, 0.5),
        ({"mtp_acceptance": []}, None),
        ({}, None),
        ({"mtp_acceptance": [None]}, None),
        ({"mtp_acceptance": [math.nan]}, None),
    ],
)
def test_the_acceptance_is_that_of_the_first_module(result, expected):
    run = made_run("base", 1, result=result)
    assert METRICS["mtp_acceptance"].read(run, None) == expected


@pytest.mark.parametrize("sign", [1, -1])
def test_the_relative_loss_error_is_the_largest_of_the_run(sign):
    theirs = [4.0, 3.0, 3.5, 2.75]
    ours = [b + sign * by for b, by in zip(theirs, (0, 0.5, -0.25, -0.25), strict=True)]
    run = made_run("free", 1, curves={"loss": curve(ours)})
    base = made_run("base", 1, curves={"loss": curve(theirs)})
    a, b, errors = ours[0], theirs[0], [0.0]
    for x, y in zip(ours[1:], theirs[1:], strict=True):
        a, b = 0.9 * a + 0.1 * x, 0.9 * b + 0.1 * y
        errors.append(abs(a - b) / b)
    assert max(errors) > errors[-1], "the largest has to be elsewhere than at the end"
    # The same sums of four numbers in another order.
    assert relative_loss_error(run, base) == pytest.approx(max(errors), rel=1e-12)
    assert relative_loss_error(base, base) == 0


@pytest.mark.parametrize(
    "base",
    [
        None,
        made_run("base", 1, None),
        made_run("base", 1, curves={}),
        made_run("base", 1, curves={"loss": curve([4.0, 3.0, 2.0])}),  # ended elsewhere
        made_run("base", 1, curves={"loss": curve([4.0, 3.0], tokens_per_step=32)}),
    ],
    ids=["none", "unfinished", "no curve", "longer", "other tokens"],
)
def test_runs_that_are_no_pair_have_no_relative_loss_error(base):
    assert relative_loss_error(made_run("free", 1), base) is None


def test_a_step_that_one_of_two_refused_is_left_out():
    ours, theirs = curve([4.0, 9.0, 3.0]), curve([4.0, 3.5, 3.0])
    skipped = type(theirs)(*(getattr(theirs, n)[[0, 2]] for n in ("steps", "tokens", "values")))
    run = made_run("free", 1, curves={"loss": ours})
    base = made_run("base", 1, curves={"loss": skipped})
    assert relative_loss_error(run, base) == 0


def test_specialization_is_the_divergence_of_the_domains():
    draw = np.random.default_rng(1)
    two_DLE = draw.gamma(0.5, size=(2, 3, 8))
    # Of two distributions SciPy has it, as a distance: the root.
    expected = np.mean([distance.jensenshannon(*two_DLE[:, i], base=2) ** 2 for i in range(3)])
    assert specialization(load(two_DLE)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("relative_DLE", "bits"),
    [
        ([[[1, 1]], [[1, 1]]], 0.0),
        ([[[2, 0]], [[2, 0]]], 0.0),  # unbalanced, and in every domain alike
        ([[[2, 0]], [[0, 2]]], 1.0),
        ([[[3, 0, 0]], [[0, 3, 0]], [[0, 0, 3]]], math.log2(3)),
        ([[[2, 0], [1, 1]], [[0, 2], [1, 1]]], 0.5),  # one of two layers
        ([[[4, 0]], [[0, 1]]], 1.0),  # each domain weighs the same
    ],
)
def test_specialization_of_clear_cases(relative_DLE, bits):
    assert specialization(load(relative_DLE)) == pytest.approx(bits, abs=1e-15)


def test_figures_of_training_are_of_its_end():
    values = [9.0] * 30 + [1.0, 2.0] * 25
    curves = {"max_violation": curve(values), "tokens_per_second": curve([1.0, 100.0, 3.0])}
    run = made_run("base", 1, curves=curves)
    assert METRICS["max_violation_batch"].read(run, None) == 1.5
    assert METRICS["tokens_per_second"].read(run, None) == 3.0
    assert METRICS["max_violation_batch"].read(made_run("base", 1), None) is None
