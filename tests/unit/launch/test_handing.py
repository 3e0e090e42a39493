"""Runs are handed in exactly once, whatever the scheduler says and whoever dies."""

import json
import threading

import pytest

from dsv3.errors import LockHeldError
from dsv3.launch.handing import hand_in_runs
from dsv3.launch.scheduler import SchedulerError
from dsv3.launch.submission import Submission, jobs_root, place_of
from dsv3.launch.submit import Patience
from dsv3.runs.directory import RunDirectory
from dsv3.runs.lock import RunLock
from dsv3.runs.provenance import Provenance
from unit.launch.scheduler_double import Double, DoubleLauncher

RECORD = {"data_fingerprint": "data-1", "numerics_version": 2}


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def patience():
    clock = Clock()
    return Patience(settle_s=20, lock_s=1, sleep=clock.sleep, clock=clock)


@pytest.fixture
def runs(config):
    found = []
    for seed in (1, 2, 3):
        own = config.model_copy(update={"seed": seed})
        provenance = Provenance(RECORD, "")
        found.append((RunDirectory.create_or_open(own, overrides=(), provenance=provenance), own))
    return found


def hand(double, runs, patience, *, retry=False):
    return hand_in_runs(DoubleLauncher(double), runs, name="x", retry=retry, patience=patience)


def outcomes(handed):
    return [each.outcome for each in handed]


def test_what_is_missing_makes_one_array_and_is_not_handed_in_again(runs, patience):
    double = Double()
    runs[0][0].mark_done({"loss": 1.0})
    handed = hand(double, runs, patience)
    assert outcomes(handed) == ["done", "handed in", "handed in"]
    assert [each.job for each in handed] == [None, "100_0", "100_1"]
    assert outcomes(hand(double, runs, patience)) == ["done", "there already", "there already"]
    assert len(double.arrays) == 1


def test_only_ended_jobs_are_handed_in_again(runs, patience):
    double = Double()
    hand(double, runs, patience)
    [key] = double.arrays.values()
    double.states = {(key, 0): "RUNNING", (key, 1): "TIMEOUT", (key, 2): "CANCELLED"}
    handed = hand(double, runs, patience)
    assert outcomes(handed) == ["there already", "handed in", "handed in"]
    assert {place_of(run).key for run, _ in runs[1:]} == {double.arrays["101"]}
    assert place_of(runs[0][0]).key == key


def test_a_failed_run_waits_for_retry(runs, patience):
    runs[0][0].mark_failed(SchedulerError("no luck"))
    assert outcomes(hand(Double(), runs, patience))[0] == "failed before"
    assert outcomes(hand(Double(), runs, patience, retry=True))[0] == "handed in"


@pytest.mark.parametrize("lie", ["take in silence", "take and refuse"])
@pytest.mark.parametrize("blind", [0, 1, 2])
def test_what_was_taken_in_silence_is_found_by_its_key(runs, patience, lie, blind):
    double = Double(lies=[lie], blind=1 + blind if lie == "take in silence" else 0)
    assert set(outcomes(hand(double, runs, patience))) == {"handed in"}
    assert set(outcomes(hand(double, runs, patience))) == {"there already"}
    assert (len(double.arrays), double.calls.count("submit")) == (1, 1)


def test_what_was_lost_is_handed_in_again_once_it_had_time_to_show(runs, patience):
    double = Double(lies=["lose"])
    assert set(outcomes(hand(double, runs, patience))) == {"handed in"}
    assert (len(double.arrays), double.calls.count("submit")) == (1, 2)
    assert patience.clock() >= patience.settle_s


def test_a_scheduler_that_never_takes_it_is_an_error_and_asked_again_later(runs, patience):
    double = Double(lies=["lose"] * 3)
    with pytest.raises(SchedulerError, match="did not take the jobs in 3 tries"):
        hand(double, runs, patience)
    assert not double.arrays
    assert set(outcomes(hand(double, runs, patience))) == {"handed in"}
    assert len(double.arrays) == 1


def test_a_refusal_leaves_no_doubt(runs, patience):
    double = Double(lies=["refuse"])
    with pytest.raises(SchedulerError, match="invalid partition"):
        hand(double, runs, patience)
    before_s = patience.clock()
    assert set(outcomes(hand(double, runs, patience))) == {"handed in"}
    assert patience.clock() == before_s, "nothing had to settle"


def test_without_an_answer_nothing_is_handed_in(runs, patience):
    double = Double()
    hand(double, runs, patience)
    double.deaf = 1000
    with pytest.raises(SchedulerError, match="garbage"):
        hand(double, runs, patience)
    assert len(double.arrays) == 1


def test_a_scheduler_that_does_not_answer_is_not_asked_for_more(runs, patience):
    double = Double(deaf=1)
    with pytest.raises(SchedulerError, match="garbage"):
        hand(double, runs, patience)
    assert (double.calls, place_of(runs[0][0])) == (["jobs"], None)


def test_what_a_scheduler_forgot_is_handed_in_anew(runs, patience):
    double = Double()
    hand(double, runs, patience)
    double.forget()
    assert set(outcomes(hand(double, runs, patience))) == {"handed in"}
    assert len(double.arrays) == 1


def test_an_array_that_is_known_and_not_listed_is_not_replaced(runs, patience):
    """squeue leaves jobs out, scontrol knows better."""
    double = Double()
    hand(double, runs, patience)
    double.blind = 1000
    with pytest.raises(SchedulerError, match="does not list it"):
        hand(double, runs, patience)
    assert len(double.arrays) == 1


def test_an_intent_that_was_never_asked_about_is_replaced_at_once(runs, patience):
    """Killed between writing down and asking."""

    class KilledError(BaseException):
        pass

    double = Double()
    with pytest.MonkeyPatch.context() as patch:

        def killed(_self):
            raise KilledError

        patch.setattr(Submission, "mark_asked", killed)
        with pytest.raises(KilledError):
            hand(double, runs, patience)
    assert set(outcomes(hand(double, runs, patience))) == {"handed in"}
    assert (len(double.arrays), patience.clock()) == (1, 0.0)


def test_a_run_that_is_trained_elsewhere_is_left_alone(runs, patience):
    with RunLock(runs[1][0].lock_path):
        assert outcomes(hand(Double(), runs, patience))[1] == "trained elsewhere"


def test_two_commands_hand_in_one_after_the_other(runs, patience):
    jobs_root(runs[0][0]).mkdir()
    with RunLock(jobs_root(runs[0][0]) / "lock"), pytest.raises(LockHeldError):
        hand(Double(), runs, patience)
    double, told = Double(), []
    real = Patience(settle_s=1)
    threads = [
        threading.Thread(target=lambda: told.extend(outcomes(hand(double, runs, real))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (told.count("handed in"), told.count("there already"), len(double.arrays)) == (3, 9, 1)


def test_the_intent_names_every_run_and_its_configuration(runs, patience):
    hand(Double(), runs, patience)
    place = place_of(runs[2][0])
    intent = Submission(place.submission).intent()
    assert intent.runs[place.index].directory == runs[2][0].path.absolute()
    assert intent.runs[place.index].config == "config.yaml"
    assert json.loads((place.submission / "job.json").read_text()) == {"array": "100"}
