"""Runs of a command, handed in: those that are neither done nor with the scheduler already."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from dsv3.config.root import RunConfig
from dsv3.launch.launcher import ClusterLauncher
from dsv3.launch.submission import (
    Intent,
    PlannedRun,
    Submission,
    jobs_root,
    new_key,
    refuse_unspeakable,
)
from dsv3.launch.submit import Patience, hand_in, handing_in, live_jobs
from dsv3.runs.directory import RunDirectory, Status

Outcome = Literal["done", "failed before", "trained elsewhere", "there already", "handed in"]


@dataclass(frozen=True)
class Handed:
    """What became of one run; `job` is the scheduler's name of its job, if it has one now."""

    run: RunDirectory
    outcome: Outcome
    job: str | None = None


def hand_in_runs(
    launcher: ClusterLauncher,
    runs: Sequence[tuple[RunDirectory, RunConfig]],
    *,
    name: str,
    retry: bool,
    patience: Patience | None = None,
) -> list[Handed]:
    """Hand in what is missing of these runs, one array for each shape of job; returns at once.

    Raises SchedulerError if it is not known what the scheduler has, or if it refuses; then what was
    taken is not lost, and not handed in twice when asked again.
    """
    patience = patience or Patience()
    refuse_unspeakable([run.path.absolute() for run, _ in runs])
    with handing_in(runs[0][0].path.absolute().parent, patience):
        settled = _settled(launcher, [run for run, _ in runs], patience, retry=retry)
        missing = [pair for pair in runs if pair[0].path not in settled]
        if missing:  # whoever does not answer is not asked for more: that would leave doubt
            launcher.scheduler.jobs([new_key()])
        for array in launcher.arrays([config for _, config in missing], name):
            members = [missing[number] for number in array.runs]
            submission = _write(launcher, members, array.script)
            scheduler_name = hand_in(launcher.scheduler, submission, patience)
            for number, (run, _) in enumerate(members):
                settled[run.path] = Handed(run, "handed in", f"{scheduler_name}_{number}")
    return [settled[run.path] for run, _ in runs]


def _settled(
    launcher: ClusterLauncher, runs: Sequence[RunDirectory], patience: Patience, *, retry: bool
) -> dict[Path, Handed]:
    """The runs with nothing to hand in, by directory."""
    done = [Handed(run, "done") for run in runs if run.status() is Status.DONE]
    open_runs = [run for run in runs if run.path not in {each.run.path for each in done}]
    jobs = live_jobs(launcher.scheduler, open_runs, patience)
    found: dict[Path, Handed] = {each.run.path: each for each in done}
    for run in open_runs:
        status = run.status()
        if run.path in jobs:
            found[run.path] = Handed(run, "there already", jobs[run.path].id)
        elif status is Status.DONE:
            found[run.path] = Handed(run, "done")
        elif status is Status.RUNNING:
            found[run.path] = Handed(run, "trained elsewhere")
        elif status is Status.FAILED and not retry:
            found[run.path] = Handed(run, "failed before")
    return found


def _write(
    launcher: ClusterLauncher,
    members: Sequence[tuple[RunDirectory, RunConfig]],
    script: Callable[[str, Path], str],
) -> Submission:
    key = new_key()
    root = jobs_root(members[0][0])
    first = members[0][1].launcher
    intent = Intent(
        key=key,
        launcher=first.kind,
        profile=launcher.profile,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        fruitless_starts=first.fruitless_starts,
        runs=tuple(
            PlannedRun(directory=run.path.absolute(), config=run.config_file(config))
            for run, config in members
        ),
    )
    return Submission.create(root, intent, script(key, root / key))
