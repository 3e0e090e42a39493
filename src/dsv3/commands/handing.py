"""Runs of a command on a cluster: handed in, and told what became of each."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsv3.commands import console
from dsv3.commands.ending import say_failed_before
from dsv3.config.root import RunConfig
from dsv3.errors import Dsv3Error
from dsv3.launch.handing import Handed, hand_in_runs
from dsv3.launch.launcher import ClusterLauncher
from dsv3.launch.submission import jobs_root, new_key
from dsv3.plan.quantities import plural
from dsv3.runs.directory import RunDirectory
from dsv3.sweep.arms import Arm
from dsv3.sweep.runner import exit_code_of


def hand_in(
    launcher: ClusterLauncher,
    arms: Sequence[Arm],
    directories: Sequence[RunDirectory],
    *,
    name: str,
    retry: bool,
    as_json: bool,
) -> int:
    """Hand in what is missing, print what became of every run; the exit code.

    0 unless a run failed before and is not tried again.
    """
    runs = [(run, arm.config) for run, arm in zip(directories, arms, strict=True)]
    handed = hand_in_runs(launcher, runs, name=name, retry=retry)
    codes = []
    for each in handed:
        failed = each.outcome == "failed before"
        codes.append(say_failed_before(each.run, quiet=as_json) if failed else 0)
    if as_json:
        console.write_json({"name": name, "runs": [_record(*p) for p in _pairs(arms, handed)]})
    else:
        rows = [
            (arm.name, str(arm.config.seed), each.outcome, each.job or "", str(each.run.path))
            for arm, each in _pairs(arms, handed)
        ]
        console.write_table(("arm", "seed", "", "job", "run directory"), rows)
        counts = Counter(each.outcome for each in handed)
        said = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
        where = f"{launcher.scheduler.name} ({launcher.profile})"
        console.write(f"{plural(len(handed), 'run')} for {where}: {said}")
        console.write(f"`dsv3 status {name}` shows them, `dsv3 cancel {name}` stops them")
    return exit_code_of(codes, len(codes), None)


def print_scripts(launcher: ClusterLauncher, configs: Sequence[RunConfig], name: str) -> None:
    """Print the script of every array, and what the scheduler says to it; nothing is handed in."""
    for text, verdict, _ in verdicts(launcher, configs, name):
        console.write(f"\n{text}")
        console.write(f"{launcher.scheduler.name} says: {verdict}")


def verdicts(
    launcher: ClusterLauncher, configs: Sequence[RunConfig], name: str
) -> list[tuple[str, str, bool]]:
    """The script of every array, the scheduler's verdict, and whether it would take it."""
    found: list[tuple[str, str, bool]] = []
    for array in launcher.arrays(configs, name):
        key = new_key()
        text = array.script(key, jobs_root(RunDirectory.of(configs[0])) / key)
        with tempfile.TemporaryDirectory() as directory:
            script = Path(directory) / "job.sh"
            script.write_text(text, encoding="utf-8")
            try:
                found.append((text, launcher.scheduler.verdict(script), True))
            except Dsv3Error as error:
                found.append((text, "; ".join(map(str, error.problems)), False))
    return found


def _pairs(arms: Sequence[Arm], handed: Sequence[Handed]) -> list[tuple[Arm, Handed]]:
    return list(zip(arms, handed, strict=True))


def _record(arm: Arm, handed: Handed) -> dict[str, Any]:
    return arm.record() | {
        "directory": str(handed.run.path),
        "status": str(handed.run.status()),
        "outcome": handed.outcome,
        "job": handed.job,
    }
