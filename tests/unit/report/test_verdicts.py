"""What a study is judged to show, and when nothing is said."""

import pytest

from dsv3.config.recipe import Rule
from dsv3.report.verdicts import judge
from dsv3.sweep.statistics import (
    BETTER,
    NO_DIFFERENCE,
    TOO_FEW,
    WITHIN_BOUND,
    WORSE,
    compare,
    detectable_difference,
)
from unit.report.made_runs import START, provenance, recipe
from unit.report.made_study import curve, made_run, made_study

BASE = {1: 2.5, 2: 2.75, 3: 2.25}
SHIFTS = {1: -0.10, 2: -0.11, 3: -0.12}


def runs_of(arm="free", shifts=SHIFTS, **changes):
    """The baseline's three runs and those of an arm."""
    base = [made_run("base", seed, loss) for seed, loss in BASE.items()]
    return base + [made_run(arm, s, BASE[s] + by, **changes) for s, by in shifts.items()]


def verdict(runs, **of_recipe):
    found = judge(made_study(*runs, recipe=recipe(**of_recipe)))
    return found.deciding.comparisons["free"].verdict


@pytest.mark.parametrize(
    ("better", "sign", "expected"),
    [("lower", 1, BETTER), ("lower", -1, WORSE), ("higher", 1, WORSE), ("higher", -1, BETTER)],
)
def test_the_rule_of_the_recipe_decides(better, sign, expected):
    runs = runs_of(shifts={seed: sign * by for seed, by in SHIFTS.items()})
    assert verdict(runs, rule={"better": better}) == expected
    assert verdict(runs, rule={"better": better, "margin": 0.5}) == NO_DIFFERENCE


def test_a_sweep_without_a_recipe_is_judged_by_its_loss():
    found = judge(made_study(*runs_of()))
    assert found.deciding.info.name == "loss"
    assert found.rule == Rule(better="lower")
    assert found.deciding.comparisons["free"].verdict == BETTER


def test_the_deciding_figure_has_its_summary_and_its_noise():
    found = judge(made_study(*runs_of(), recipe=recipe()))
    of_base, of_free = found.deciding.arms
    assert (of_base.arm, of_base.values) == ("base", BASE)
    assert (of_base.summary.n, of_base.summary.mean) == (3, pytest.approx(2.5))
    assert of_base.summary.sd == pytest.approx(0.25)
    assert found.deciding.of_arm("free") is of_free
    assert found.deciding.noise.paired == pytest.approx(0.01)
    spread = (0.25**2 + of_free.summary.sd**2) / 2
    assert found.deciding.noise.between_seeds == pytest.approx(spread**0.5)
    expected = detectable_difference(0.01, 3, confidence=0.95, power=0.8)
    assert found.deciding.noise.detectable == pytest.approx(expected)
    assert (found.missing, found.differences) == ((), {"free": ()})


def test_confidence_is_shared_by_the_arms_of_the_sweep():
    runs = [*runs_of(), *runs_of("third")[3:]]
    found = judge(made_study(*runs, recipe=recipe()))
    assert found.confidence_of_each == pytest.approx(0.975)
    arm = {seed: BASE[seed] + by for seed, by in SHIFTS.items()}
    expected = compare(arm, BASE, Rule(better="lower"), comparisons=2)
    assert found.deciding.comparisons["third"] == expected


def test_other_figures_come_without_a_verdict():
    found = judge(made_study(*runs_of(), recipe=recipe()))
    names = [each.info.name for each in found.others]
    assert "bpb" in names
    assert "loss" not in names
    assert "mtp_acceptance" not in names, "no run has it"
    assert all(c.verdict is None for each in found.others for c in each.comparisons.values())
    of_bpb = next(each for each in found.others if each.info.name == "bpb")
    assert of_bpb.comparisons["free"].mean == pytest.approx(-0.055)


def test_a_bound_is_held_against_the_deciding_figure_alone():
    runs = [made_run("base", s, loss) for s, loss in BASE.items()]
    for seed, by in ((1, 1e-3), (2, 2e-3), (3, 1.5e-3)):
        near = {"loss": curve([4.0 + by, 3.0])}
        runs.append(made_run("free", seed, BASE[seed], curves=near))
    rule = {"better": "lower", "bound": 0.0025}
    found = judge(made_study(*runs, recipe=recipe(metric="relative_loss_error", rule=rule)))
    comparison = found.deciding.comparisons["free"]
    assert comparison.verdict == WITHIN_BOUND
    assert comparison.differences[1] == pytest.approx(1e-3 / 4)
    of_loss = next(each for each in found.others if each.info.name == "loss")
    # Under a bound this would be that of the arm's own losses, near 2.5.
    assert of_loss.comparisons["free"].interval == (0, 0)


def test_without_two_pairs_nothing_is_decided():
    base, *_ = runs_of()
    assert verdict([base, made_run("free", 1, 2.0)]) == TOO_FEW


def test_a_run_that_has_yet_to_end_withholds_the_verdict():
    """To look again with every new run, and to stop when it pleases, errs more than it says."""
    runs = [*runs_of(shifts={1: -0.10, 2: -0.11}), made_run("free", 3, None)]
    said = verdict(runs)
    assert said == "not decided: no result yet of free seed 3"
    found = judge(made_study(*runs, recipe=recipe()))
    assert found.deciding.comparisons["free"].unpaired == (3,)
    assert [(m.arm, m.seed, m.status) for m in found.missing] == [("free", 3, "stopped")]


@pytest.mark.parametrize(("exit_code", "decided"), [(5, False), (8, True), (3, True)])
def test_a_diverged_seed_is_not_left_out_of_a_verdict(exit_code, decided):
    """Those that are left would flatter the arm; a lost machine says nothing about it."""
    problem = {"setting": "loss", "rule": "it is NaN", "remedy": ""}
    failure = {"exit_code": exit_code, "problems": [problem]}
    failed = made_run("free", 3, None, status="failed", failure=failure)
    runs = [*runs_of(shifts={1: -0.10, 2: -0.1001}), failed]
    said = verdict(runs)
    assert said == (BETTER if decided else "not decided: numbers went wrong in free seed 3")
    (cell,) = judge(made_study(*runs, recipe=recipe())).missing
    assert (cell.status, cell.why) == ("failed", "it is NaN")


def test_a_diverged_baseline_decides_nothing_either():
    failure = {"exit_code": 5, "problems": []}
    failed = made_run("base", 4, None, status="failed", failure=failure)
    runs = [*runs_of(), failed, made_run("free", 4, 2.0)]
    assert verdict(runs) == "not decided: numbers went wrong in base seed 4"


DIFFERENT = [
    ({"start": START | {"weights.model": "cc"}}, "different initial weights"),
    ({"start": START | {"data_order": "cc"}}, "different order of the samples"),
    ({"start": {"weights.model": "aa"}}, "different order of the samples"),
    ({"start": None}, "initial weights and order of samples were not recorded"),
    ({"attempts": (provenance(numerics_version=1),)}, "different numerics version"),
    ({"attempts": (provenance(data_fingerprint="x"),)}, "different data"),
    ({"attempts": (provenance(threads_per_rank=1),)}, "different threads per rank"),
    ({"attempts": (provenance(git={"commit": "ba5e"}),)}, "different code version"),
    ({"attempts": (provenance(), provenance(threads_per_rank=1))}, "different threads per rank"),
    ({"attempts": (), "provenance": provenance(data_fingerprint="x")}, "different data"),
]


@pytest.mark.parametrize(("changes", "what"), DIFFERENT)
def test_runs_that_are_no_pairs_are_not_compared(changes, what):
    assert verdict(runs_of(**changes)) == f"not comparable: {what} (seeds 1, 2, 3)"


def test_runs_evaluated_on_sets_of_different_sizes_are_no_pairs():
    runs = [
        made_run("base", s, result={"loss": v, "evaluated_tokens": 64}) for s, v in BASE.items()
    ]
    for tokens, expected in [(64, BETTER), (256, "not comparable: different sizes of the")]:
        ours = [
            made_run("free", s, result={"loss": BASE[s] + by, "evaluated_tokens": tokens})
            for s, by in SHIFTS.items()
        ]
        assert verdict(runs + ours, metric="loss").startswith(expected)


def test_runs_that_changed_on_their_way_are_no_pairs_though_both_did():
    both = (provenance(), provenance(threads_per_rank=1))
    runs = [made_run("base", s, loss, attempts=both) for s, loss in BASE.items()]
    runs += [made_run("free", s, BASE[s] + by, attempts=both) for s, by in SHIFTS.items()]
    assert verdict(runs) == "not comparable: different threads per rank (seeds 1, 2, 3)"


def test_a_seed_that_is_no_pair_is_named():
    runs = runs_of(shifts={1: -0.10, 2: -0.11})
    runs.append(made_run("free", 3, 2.0, start=START | {"weights.model": "cc"}))
    found = judge(made_study(*runs, recipe=recipe()))
    assert found.differences == {"free": ("different initial weights (seed 3)",)}
    assert found.deciding.comparisons["free"].mean is not None, "figures are shown all the same"


def test_weights_that_one_arm_alone_has_are_no_difference():
    """An arm with MTP has those of its modules beside the ones in common."""
    with_mtp = START | {"weights.mtp": "dd"}
    assert verdict(runs_of(start=with_mtp)) == BETTER
    runs = [made_run("base", s, loss, start=with_mtp) for s, loss in BASE.items()]
    other = START | {"weights.mtp": "ee"}
    runs += [made_run("free", s, BASE[s] + by, start=other) for s, by in SHIFTS.items()]
    assert "different initial weights of the MTP modules" in verdict(runs)
