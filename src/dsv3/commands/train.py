"""`dsv3 train`: every run composed, refused or prepared before the first of them starts."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dsv3.commands import console
from dsv3.commands.dry_run import print_dry_run
from dsv3.commands.ending import Ended, conclude, outcome_of, say_failed_before
from dsv3.commands.handing import hand_in
from dsv3.commands.lint import warn
from dsv3.commands.preparing import (
    make_directory,
    prepare_all,
    refuse_impossible,
    refuse_unmakeable,
)
from dsv3.commands.status import status
from dsv3.commands.sweeping import run_sweep
from dsv3.commands.targets import targets
from dsv3.config.root import RunConfig
from dsv3.launch.launcher import ClusterLauncher, Launcher
from dsv3.launch.launchers import launcher_of
from dsv3.launch.local import launch
from dsv3.machine import this_machine
from dsv3.plan.description import describe
from dsv3.runs.directory import RunDirectory, Status, check_run_root
from dsv3.runs.lock import refuse_held
from dsv3.sweep.arms import Arm, Sweep
from dsv3.sweep.expand import sweep_of
from dsv3.sweep.record import SweepRecord, SweepRun, keep, new_record
from dsv3.sweep.runner import Job, exit_code_of
from dsv3.sweep.slots import Slots, slots
from dsv3.sweep.tracking import tracked


def train(
    overrides: Sequence[str],
    *,
    multirun: bool,
    config_dir: Path | None,
    dry_run: bool,
    watch: bool,
    retry: bool,
    strict: bool,
    as_json: bool,
) -> int:
    """Train one run, or the runs of a sweep; returns the exit code.

    Everything that can be known beforehand (configuration, capacity, data, directories) is
    checked for every run before the first one starts. `strict` refuses known traps, too. With
    `watch` runs on a cluster are followed to their end; those of this machine always are.
    """
    sweep = sweep_of(overrides, multirun=multirun, config_dir=config_dir)
    configs = [arm.config for arm in sweep.arms]
    warn(configs, strict=strict, quiet=as_json)
    launcher = launcher_of(configs, config_dir)
    if dry_run:
        print_dry_run(sweep, launcher, as_json=as_json)
        return 0
    refuse_impossible(configs, launcher)
    refuse_unmakeable(configs)
    if sweep.recipe is None and not multirun:
        (prepared,) = prepare_all(sweep.arms, launcher)
        directory = make_directory(sweep.arms[0], prepared, launcher)
        name = str(directory.path)
        code = train_one(sweep.arms[0], directory, launcher, retry=retry, as_json=as_json)
    else:
        name, code = _train_sweep(sweep, launcher, retry=retry, as_json=as_json)
    if watch and isinstance(launcher, ClusterLauncher) and not as_json:
        return follow(name, configs[0])
    return code


def follow(name: str, config: RunConfig) -> int:
    """Show runs on a cluster until none is with it any more; the exit code of all of them."""
    roots = [f"run_root={config.run_root}", f"sweep_root={config.sweep_root}"]
    status([name, *roots], watch=True, as_json=False)
    (found,) = targets([name, *roots], verb="train --watch")
    runs = [gauge.run for gauge in found.gauges()]
    codes = [outcome_of(run) for run in runs]
    return exit_code_of(codes, len(codes), None)


def train_one(
    arm: Arm, directory: RunDirectory, launcher: Launcher, *, retry: bool, as_json: bool
) -> int:
    """Train a run that is no part of a sweep; returns the exit code.

    Raises LockHeldError if another process trains it.
    """
    if isinstance(launcher, ClusterLauncher):
        name, told = directory.id, {"retry": retry, "as_json": as_json}
        return hand_in(launcher, [arm], [directory], name=name, **told)
    stands = directory.status()
    if stands is Status.DONE:
        return conclude([Ended(arm, directory, 0, trained=False)], as_json=as_json)
    if stands is Status.FAILED and not retry:
        code = say_failed_before(directory, quiet=as_json)
        return conclude([Ended(arm, directory, code, trained=False)], as_json=as_json)
    refuse_held(directory.lock_path)
    if not as_json:
        console.note(str(describe(arm.config)))
        console.note(f"run directory: {directory.path}")
    code = launch(directory.path, arm.config, quiet=as_json)
    return conclude([Ended(arm, directory, code, trained=True)], as_json=as_json)


def _train_sweep(
    sweep: Sweep, launcher: Launcher, *, retry: bool, as_json: bool
) -> tuple[str, int]:
    """Name of the sweep, and the exit code."""
    record = _record(sweep)
    arms = [replace(arm, config=tracked(arm.config, record, arm.name)) for arm in sweep.arms]
    configs = [arm.config for arm in arms]
    root = Path(configs[0].sweep_root).expanduser().absolute()
    check_run_root(configs[0].sweep_root, key="sweep_root")
    on_cluster = isinstance(launcher, ClusterLauncher)
    room = Slots(()) if on_cluster else slots(configs, this_machine())
    prepared = prepare_all(arms, launcher)
    pairs = zip(arms, prepared, strict=True)
    directories = [make_directory(*pair, launcher) for pair in pairs]
    record = keep(record, root)
    if isinstance(launcher, ClusterLauncher):
        told = {"retry": retry, "as_json": as_json}
        return record.id, hand_in(launcher, arms, directories, name=record.id, **told)
    jobs = [
        Job(number, len(arms), arm, directory)
        for number, (arm, directory) in enumerate(zip(arms, directories, strict=True), start=1)
    ]
    return record.id, run_sweep(record, root, jobs, room, retry=retry, as_json=as_json)


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
