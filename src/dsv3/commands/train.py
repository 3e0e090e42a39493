"""`dsv3 train`: every run composed, refused or prepared before the first of them starts."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dsv3.commands import console
from dsv3.commands.dry_run import print_dry_run
from dsv3.commands.ending import Ended, conclude, say_failed_before
from dsv3.commands.lint import warn
from dsv3.commands.preparing import (
    make_directory,
    prepare_all,
    refuse_impossible,
    refuse_unmakeable,
)
from dsv3.commands.sweeping import run_sweep
from dsv3.launch.local import launch
from dsv3.machine import this_machine
from dsv3.plan.description import describe
from dsv3.runs.directory import RunDirectory, Status, check_run_root
from dsv3.runs.lock import refuse_held
from dsv3.sweep.arms import Arm, Sweep
from dsv3.sweep.expand import sweep_of
from dsv3.sweep.record import SweepRecord, SweepRun, keep, new_record
from dsv3.sweep.runner import Job
from dsv3.sweep.slots import slots
from dsv3.sweep.tracking import tracked


def train(
    overrides: Sequence[str],
    *,
    multirun: bool,
    config_dir: Path | None,
    dry_run: bool,
    retry: bool,
    strict: bool,
    as_json: bool,
) -> int:
    """Train one run, or the runs of a sweep; returns the exit code.

    Everything that can be known beforehand (configuration, capacity, data, directories) is
    checked for every run before the first one starts. `strict` refuses known traps, too.
    """
    sweep = sweep_of(overrides, multirun=multirun, config_dir=config_dir)
    configs = [arm.config for arm in sweep.arms]
    warn(configs, strict=strict, quiet=as_json)
    if dry_run:
        print_dry_run(sweep, as_json=as_json)
        return 0
    refuse_impossible(configs)
    refuse_unmakeable(configs)
    if sweep.recipe is None and not multirun:
        (prepared,) = prepare_all(configs)
        directory = make_directory(sweep.arms[0], prepared)
        return train_one(sweep.arms[0], directory, retry=retry, as_json=as_json)
    return _train_sweep(sweep, retry=retry, as_json=as_json)


def train_one(arm: Arm, directory: RunDirectory, *, retry: bool, as_json: bool) -> int:
    """Train a run that is no part of a sweep; returns the exit code.

    Raises LockHeldError if another process trains it.
    """
    status = directory.status()
    if status is Status.DONE:
        return conclude([Ended(arm, directory, 0, trained=False)], as_json=as_json)
    if status is Status.FAILED and not retry:
        code = say_failed_before(directory, quiet=as_json)
        return conclude([Ended(arm, directory, code, trained=False)], as_json=as_json)
    refuse_held(directory.lock_path)
    if not as_json:
        console.note(str(describe(arm.config)))
        console.note(f"run directory: {directory.path}")
    code = launch(directory.path, arm.config, quiet=as_json)
    return conclude([Ended(arm, directory, code, trained=True)], as_json=as_json)


def _train_sweep(sweep: Sweep, *, retry: bool, as_json: bool) -> int:
    record = _record(sweep)
    arms = [replace(arm, config=tracked(arm.config, record, arm.name)) for arm in sweep.arms]
    configs = [arm.config for arm in arms]
    root = Path(configs[0].sweep_root).expanduser().absolute()
    check_run_root(configs[0].sweep_root, key="sweep_root")
    room = slots(configs, this_machine())
    prepared = prepare_all(configs)
    directories = [make_directory(*pair) for pair in zip(arms, prepared, strict=True)]
    record = keep(record, root)
    jobs = [
        Job(number, len(arms), arm, directory)
        for number, (arm, directory) in enumerate(zip(arms, directories, strict=True), start=1)
    ]
    return run_sweep(record, root, jobs, room, retry=retry, as_json=as_json)


def _record(sweep: Sweep) -> SweepRecord:
    first = sweep.arms[0].config
    return new_record(
        name=sweep.name,
        recipe=sweep.recipe,
        baseline=sweep.baseline,
        model=first.model.name,
        run_root=Path(first.run_root),
        command=sys.argv,
        runs=[
            SweepRun(id=arm.id, arm=arm.name, seed=arm.config.seed, overrides=arm.overrides)
            for arm in sweep.arms
        ],
    )
