"""`dsv3 status`: where the runs of sweeps stand, from files, locks, and what a cluster says."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsv3.commands import console
from dsv3.commands.products import products
from dsv3.commands.progress_table import COLUMNS, NUMBERS_FROM, row, summary
from dsv3.commands.queueing import read
from dsv3.commands.targets import FoundRun, FoundSweep, Target, newest_sweeps, targets, understood
from dsv3.errors import ConfigError, Problem
from dsv3.launch.looking import Look
from dsv3.runs.directory import Status
from dsv3.runs.lock import Holder, current_holder
from dsv3.sweep.progress import Gauge, Progress

NEWEST = 3
WATCH_EVERY_S = 2.0
CLEAR = "\x1b[H\x1b[2J"


class Watched:
    """A sweep or a run, read again and again."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._gauges: list[Gauge] = target.gauges()

    def read(self) -> "Reading":
        """The process that runs the sweep, if one does, and how far its runs are."""
        target = self.target
        holder = current_holder(target.lock_path) if isinstance(target, FoundSweep) else None
        runs, look = read(self._gauges)
        return Reading(target, holder, runs, look)


@dataclass(frozen=True)
class Reading:
    """What was found at one moment."""

    target: Target
    holder: Holder | None
    runs: list[Progress]
    look: Look

    @property
    def goes_on(self) -> bool:
        """Whether anything is trained, or will be without anybody asking again.

        Where a scheduler does not answer, nobody knows: then it is asked again.
        """
        running = any(run.status == Status.RUNNING for run in self.runs)
        return self.holder is not None or running or self.look.any_live or bool(self.look.problems)


def status(words: Sequence[str], *, watch: bool, as_json: bool) -> int:
    """Print a table for each sweep or run that is named, or for the newest sweeps; the exit code.

    With `watch` again and again, until nothing is trained any more or somebody interrupts.
    """
    if watch and as_json:
        rule = "--watch is for people, --json for programs"
        raise ConfigError(Problem("--watch --json", rule, "leave one out"))
    names, _ = understood(words)
    found = targets(words, verb="status") if names else newest_sweeps(words, NEWEST)
    watched = [Watched(target) for target in found]
    if as_json:
        console.write_json(_data(watched))
        return 0
    if not found:
        console.write("no sweeps yet; sweep_root=DIR looks elsewhere")
        return 0
    while _print(watched, clear=watch and sys.stdout.isatty()) and watch:
        try:
            time.sleep(WATCH_EVERY_S)
        except KeyboardInterrupt:
            return 0
    return 0


def _print(watched: Sequence[Watched], *, clear: bool) -> bool:
    """Print every table; whether anything is being trained."""
    readings = [each.read() for each in watched]
    if clear:
        sys.stdout.write(CLEAR)
    alone = [run for each in readings if isinstance(each.target, FoundRun) for run in each.runs]
    for each in readings:
        holder = each.holder
        if isinstance(each.target, FoundSweep):
            by = "" if holder is None else f"; run by process {holder.pid} on {holder.host}"
            console.write(f"sweep {each.target.name}: {summary(each.runs)}{by}")
            _write_table(each.runs)
    if alone:
        _write_table(alone)
    for run in alone:
        if (ran := products(run.directory)) is not None:
            console.write(f"{run.id}: {ran['text']}")
    for problem in dict.fromkeys(text for each in readings for text in each.look.problems):
        console.write(f"from the files alone: {problem}")
    sys.stdout.flush()
    return any(each.goes_on for each in readings)


def _write_table(runs: Sequence[Progress]) -> None:
    console.write_table(COLUMNS, [row(run) for run in runs], numbers_from=NUMBERS_FROM)
    for run in runs:
        told = "; ".join(filter(None, [run.job, run.failure]))
        if told:
            console.write(f"{run.arm or run.id} seed {run.seed}: {console.printable(told)}")


def _data(watched: Sequence[Watched]) -> dict[str, Any]:
    sweeps, alone = [], []
    problems: list[str] = []
    for each in watched:
        reading = each.read()
        holder = reading.holder
        entries = [run.record() | {"products": products(run.directory)} for run in reading.runs]
        problems += reading.look.problems
        if not isinstance(each.target, FoundSweep):
            alone += entries
            continue
        record = each.target.record
        sweeps.append(
            {
                "id": record.id,
                "name": record.name,
                "created_at": record.created_at,
                "running": None if holder is None else vars(holder),
                "runs": entries,
            }
        )
    return {"sweeps": sweeps, "runs": alone, "problems": list(dict.fromkeys(problems))}
