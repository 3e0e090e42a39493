"""`dsv3 status`: where the runs of sweeps stand, from files and locks alone."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from dsv3.commands import console
from dsv3.commands.products import products
from dsv3.commands.progress_table import COLUMNS, NUMBERS_FROM, row, summary
from dsv3.commands.targets import FoundRun, FoundSweep, Target, newest_sweeps, targets, understood
from dsv3.errors import ConfigError, Problem
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

    def read(self) -> tuple[Holder | None, list[Progress]]:
        """The process that runs the sweep, if one does, and how far its runs are."""
        target = self.target
        holder = current_holder(target.lock_path) if isinstance(target, FoundSweep) else None
        return holder, [gauge.read() for gauge in self._gauges]


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
    read = [(each.target, *each.read()) for each in watched]
    if clear:
        sys.stdout.write(CLEAR)
    alone = [run for target, _, runs in read if isinstance(target, FoundRun) for run in runs]
    for target, holder, runs in read:
        if isinstance(target, FoundSweep):
            by = "" if holder is None else f"; run by process {holder.pid} on {holder.host}"
            console.write(f"sweep {target.name}: {summary(runs)}{by}")
            _write_table(runs)
    if alone:
        _write_table(alone)
    for run in alone:
        if (ran := products(run.directory)) is not None:
            console.write(f"{run.id}: {ran['text']}")
    sys.stdout.flush()
    return any(
        holder is not None or any(run.status == "running" for run in runs)
        for _, holder, runs in read
    )


def _write_table(runs: Sequence[Progress]) -> None:
    console.write_table(COLUMNS, [row(run) for run in runs], numbers_from=NUMBERS_FROM)
    for run in runs:
        if run.failure is not None:
            console.write(f"{run.arm or run.id} seed {run.seed}: {run.failure}")


def _data(watched: Sequence[Watched]) -> dict[str, Any]:
    sweeps, alone = [], []
    for each in watched:
        holder, runs = each.read()
        entries = [run.record() | {"products": products(run.directory)} for run in runs]
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
    return {"sweeps": sweeps, "runs": alone}
