"""`dsv3 cancel`: asks the processes that train a sweep or a run to save and stop."""

import os
import signal
import socket
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from dsv3.commands import console
from dsv3.commands.targets import FoundSweep, Target, targets
from dsv3.launch.looking import scheduler_of
from dsv3.launch.submission import Submission, place_of
from dsv3.runs.directory import RunDirectory
from dsv3.runs.lock import Holder, current_holder

PROGRAM = "dsv3"
"""In the command line of every process of ours."""


@dataclass(frozen=True)
class Told:
    """What was done about one lock; `asked` is False where nobody could be."""

    what: str
    asked: bool
    said: str
    host: str | None = None
    pid: int | None = None


def cancel(words: Sequence[str], *, as_json: bool) -> int:
    """Send SIGTERM to who holds the locks of what is named, on this host; the exit code.

    They save and end; `dsv3 resume` goes on. So do jobs of a cluster; those that wait are taken
    back. Processes of other hosts are named and left alone.
    """
    told = [each for target in targets(words, verb="cancel") for each in _cancel(target)]
    if as_json:
        console.write_json({"cancelled": [asdict(each) for each in told]})
        return 0
    for each in told:
        console.write(f"{each.what}: {each.said}")
    return 0


def _cancel(target: Target) -> list[Told]:
    """First who runs the sweep, then who trains runs of it on behalf of somebody else."""
    told, jobs = _cancel_jobs([gauge.run for gauge in target.gauges()])
    if not isinstance(target, FoundSweep):
        run = target.directory
        return told or [_ask_trainer(run) or Told(str(run.path), False, "nobody trains it")]
    spared: set[int] = set()
    holder = current_holder(target.lock_path)
    if holder is not None:
        its_own = _descendants(holder.pid)  # before it is asked: it may be gone at once
        told.append(_ask(f"sweep {target.name}", holder, holder.pid, holder.pid, PROGRAM))
        spared = its_own if told[-1].asked else set()
    for each in target.record.runs:
        run = target.record.directory(each)
        others = None if run.path in jobs else _ask_trainer(run, spared=spared)
        told += [others] if others is not None else []
    return told or [Told(f"sweep {target.name}", False, "nobody runs it")]


def _cancel_jobs(runs: Sequence[RunDirectory]) -> tuple[list[Told], set[Path]]:
    """End the jobs of runs on a cluster for good; what was done, and the runs it was done to.

    Raises SchedulerError if it does not answer.
    """
    told, found = [], set()
    for run in runs:
        place = place_of(run) if run.exists() else None
        if place is None or run.done_path.exists():
            continue
        scheduler = scheduler_of(place)
        job = next((j for j in scheduler.jobs([place.key]) if j.index == place.index), None)
        if job is None or not job.live:
            continue
        # First on the disk: a job that starts now, or is requeued, finds it.
        Submission(place.submission).mark_cancelled(place.index)
        if job.running:
            scheduler.ask_to_save([job.id])
            said = f"job {job.id} was asked to save and stop"
        else:
            scheduler.cancel([job.id])
            said = f"job {job.id} was waiting, and was taken back"
        told.append(Told(str(run.path), True, said))
        found.add(run.path)
    return told, found


def _ask_trainer(run: RunDirectory, *, spared: Collection[int] = ()) -> Told | None:
    """Ask the launcher of a run's first rank; None if nobody trains it, or one of `spared` does."""
    holder = current_holder(run.lock_path) if run.exists() else None
    if holder is None or holder.pid in spared:
        return None
    return _ask(str(run.path), holder, holder.pid, _launcher(holder.pid), run.id)


def _ask(what: str, holder: Holder, known: int, pid: int, word: str) -> Told:
    """Send SIGTERM to `pid` if the holder, process `known`, has `word` in its command line."""
    here = socket.gethostname()
    if holder.host != here:
        said = f"process {holder.pid} on host {holder.host} is left alone: this is {here}"
        return Told(what, False, f"{said}; cancel it there", holder.host, holder.pid)
    if word not in _command_line(known):
        said = f"process {known} holds it, and is none of ours that this one can see"
        return Told(what, False, f"{said} (another container?)", holder.host, known)
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return Told(what, False, "it has just ended", holder.host, pid)
    except PermissionError:
        said = f"process {pid} is another user's, who has to cancel it"
        return Told(what, False, said, holder.host, pid)
    said = f"process {pid} was asked to save and stop"
    return Told(what, True, said, holder.host, pid)


def _launcher(rank: int) -> int:
    """The process that started a rank, or the rank itself if that is gone."""
    try:
        parent = psutil.Process(rank).parent()
    except psutil.Error:
        return rank
    if parent is None or PROGRAM not in _command_line(parent.pid):
        return rank
    return parent.pid


def _descendants(pid: int) -> set[int]:
    try:
        return {child.pid for child in psutil.Process(pid).children(recursive=True)}
    except psutil.Error:
        return set()


def _command_line(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""
