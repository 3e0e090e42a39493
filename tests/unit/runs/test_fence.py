"""A stale attempt keeps nothing: not a checkpoint, not a result."""

import threading
import time

import pytest

from dsv3.checkpoint.collective import Solo, on_first
from dsv3.errors import Dsv3Error, LockHeldError, StaleAttemptError
from dsv3.runs.directory import RunDirectory
from dsv3.runs.lock import RunLock
from dsv3.runs.provenance import Provenance
from dsv3.train.fence import Fence

PROVENANCE = Provenance({"data_fingerprint": "d", "numerics_version": 2}, "")


@pytest.fixture
def run(config):
    return RunDirectory.create_or_open(config, overrides=(), provenance=PROVENANCE)


class LostLock(RunLock):
    """Held, as far as this process knows; a file server has given it to another machine."""

    held = True

    def set_attempt(self, attempt):
        pass


def begin(path, config) -> RunDirectory:
    run = RunDirectory(path)
    assert run.begin_attempt(LostLock(path / "lock"), config, PROVENANCE)
    return run


def test_the_last_attempt_may_write_and_those_before_it_may_not(run, config):
    first = begin(run.path, config)
    first.refuse_stale()
    second = begin(run.path, config)
    assert (first.is_stale(), second.is_stale(), run.is_stale()) == (True, False, False)
    with pytest.raises(StaleAttemptError, match="attempt 1 has been overtaken"):
        first.mark_done({"loss": 1.0})
    assert run.result() is None
    second.mark_done({"loss": 2.0})
    assert run.result()["loss"] == 2.0


def test_of_two_attempts_with_one_number_the_later_line_counts(run, config):
    first, lines = begin(run.path, config), run.attempts_path.read_bytes()
    run.attempts_path.write_bytes(b"")  # what another machine may still see of the file
    second = begin(run.path, config)
    run.attempts_path.write_bytes(lines + run.attempts_path.read_bytes())
    assert [line["attempt"] for line in run.attempts()] == [1, 1]
    assert (first.is_stale(), second.is_stale()) == (True, False)


def test_every_rank_hears_of_it_by_its_name(run, config):
    first = begin(run.path, config)
    begin(run.path, config)
    with pytest.raises(StaleAttemptError) as caught:
        on_first(Solo(), first.refuse_stale)
    again = Dsv3Error.from_record(caught.value.record())
    assert (type(again), again.exit_code) == (StaleAttemptError, 3)


def test_the_fence_is_looked_at_now_and_then_by_the_first_rank(run, config, monkeypatch):
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    first = begin(run.path, config)
    fences = [Fence(first, is_first=True), Fence(first, is_first=False)]
    begin(run.path, config)
    assert [fence.stale() for fence in fences] == [False, False]
    now_s = 10.0
    assert [fence.stale() for fence in fences] == [True, False]


def test_a_lock_may_be_waited_for(run):
    held = RunLock(run.lock_path)
    held.acquire()
    with pytest.raises(LockHeldError):
        RunLock(run.lock_path).acquire()
    threading.Timer(0.6, held.release).start()
    with RunLock(run.lock_path, patience_s=30):
        pass
