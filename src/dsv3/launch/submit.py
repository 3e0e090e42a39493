"""Hands runs in to a scheduler, each exactly once, whatever it answers and whoever is killed.

An array is written down, its runs are told, and that the scheduler will be asked is on the disk
before it is. After an answer that leaves doubt it is asked for the array's key: what it knows is
not handed in again, what it does not know for `settle_s` is.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dsv3.errors import LockHeldError, Problem
from dsv3.launch.scheduler import DoubtError, Job, Scheduler, SchedulerError
from dsv3.launch.submission import JOBS, Place, Submission, place_of
from dsv3.runs.directory import RunDirectory
from dsv3.runs.lock import RunLock

_TRIES = 3
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0


@dataclass(frozen=True)
class Patience:
    """How long an accepted array may stay invisible, and who else may hand in meanwhile."""

    settle_s: float = 60
    lock_s: float = 300
    sleep: Callable[[float], None] = field(default=time.sleep)
    clock: Callable[[], float] = field(default=time.monotonic)


@contextmanager
def handing_in(run_root: Path, patience: Patience) -> Iterator[None]:
    """Be the only command that hands in runs of this directory; others are waited for.

    Raises LockHeldError if one is still at it after `lock_s`.
    """
    jobs = run_root / JOBS
    jobs.mkdir(exist_ok=True)
    lock = RunLock(jobs / "lock")
    deadline_s = patience.clock() + patience.lock_s
    while not lock.held:
        try:
            lock.acquire()
        except LockHeldError:
            if patience.clock() > deadline_s:
                raise
            patience.sleep(_FIRST_PAUSE_S)
    try:
        yield
    finally:
        lock.release()


def live_jobs(
    scheduler: Scheduler, runs: Iterable[RunDirectory], patience: Patience
) -> dict[Path, Job]:
    """The job that has each of these runs, by directory; runs that nobody has are not in it.

    Waits while an array may be on its way. Raises SchedulerError if that cannot be known: then
    nothing may be handed in.
    """
    places = {run.path: place for run in runs if (place := place_of(run)) is not None}
    if not places:
        return {}
    jobs = scheduler.jobs(sorted({place.key for place in places.values()}))
    visible = {job.key for job in jobs}
    for key, place in {place.key: place for place in places.values()}.items():
        submission = Submission(place.submission)
        asked_ago_s = submission.asked_ago_s()
        if key in visible or asked_ago_s is None:
            continue  # None: killed before it could ask
        taken = submission.array() is not None or submission.has_begun(place.index)
        rest_s = 0.0 if taken else patience.settle_s - asked_ago_s
        jobs += _settled(scheduler, submission, rest_s, patience)
    found = _by_directory(jobs, places)
    for path, job in found.items():
        submission = Submission(places[path].submission)
        if submission.array() is None:
            submission.mark_taken(_array(job))
    return {path: job for path, job in found.items() if job.live}


def hand_in(scheduler: Scheduler, submission: Submission, patience: Patience) -> str:
    """Hand in one array that was just written down; the scheduler's name for it.

    Raises SchedulerError if it is refused or, after a few tries, not known to be taken; asked for
    again, its runs are looked for before they are handed in anew.
    """
    submission.mark_asked()
    said: tuple[Problem, ...] = ()
    for _ in range(_TRIES):
        refused = None
        try:
            number = scheduler.submit(submission.script, submission.key)
            said = (Problem("", f"it said {number}, and knows of no such jobs"),)
        except DoubtError as doubt:
            said = doubt.problems
        except SchedulerError as error:
            refused = error
        # Its word alone is worth neither a job that runs twice nor one that never does: its answer
        # to the key decides. What it refuses it has looked at, and will not take later.
        settle_s = 0 if refused else patience.settle_s
        jobs = _settled(scheduler, submission, settle_s, patience)
        if jobs:
            submission.mark_taken(_array(jobs[0]))
            return _array(jobs[0])
        if refused is not None:
            submission.mark_refused()
            raise refused
    why = "; ".join(map(str, said))
    rule = f"{scheduler.name} did not take the jobs in {_TRIES} tries: {why}"
    remedy = "ask for the same again later: what was taken is not handed in twice"
    raise SchedulerError(Problem("", rule, remedy))


def _settled(
    scheduler: Scheduler, submission: Submission, seconds: float, patience: Patience
) -> list[Job]:
    """The jobs of an array, looked for until `seconds` have passed.

    Empty if the scheduler, in an answer after that, knows of none. Raises SchedulerError if there
    is no such answer.
    """
    deadline_s = patience.clock() + seconds
    pause_s = _FIRST_PAUSE_S
    while True:
        is_last = patience.clock() >= deadline_s
        gives_up = patience.clock() >= deadline_s + patience.settle_s
        try:
            jobs = scheduler.jobs([submission.key])
            array = submission.array()
            if jobs or (is_last and not (array is not None and scheduler.knows(array))):
                return jobs
        except SchedulerError:
            if gives_up:
                raise
        if gives_up:
            rule = f"{scheduler.name} knows the array of {submission.path}, and does not list it"
            raise SchedulerError(Problem("", rule, "ask again later; nothing was handed in"))
        patience.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _by_directory(jobs: Iterable[Job], places: Mapping[Path, Place]) -> dict[Path, Job]:
    """The job of each run; of several, one that lives."""
    found: dict[tuple[str, int], Job] = {}
    for job in jobs:
        if job.live or (job.key, job.index) not in found:
            found[job.key, job.index] = job
    return {
        path: found[place.key, place.index]
        for path, place in places.items()
        if (place.key, place.index) in found
    }


def _array(job: Job) -> str:
    return job.id.partition("_")[0]
