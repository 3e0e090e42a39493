"""`dsv3 resume`: go on with what is not done, as it was asked for the first time."""

from pathlib import Path

from dsv3.commands.handing import hand_in
from dsv3.commands.preparing import make_directory, prepare_all, refuse_impossible
from dsv3.commands.sweeping import run_sweep
from dsv3.commands.targets import FoundSweep, targets
from dsv3.commands.train import train_one
from dsv3.config.root import RunConfig
from dsv3.errors import ConfigError, Problem
from dsv3.launch.launcher import ClusterLauncher
from dsv3.launch.launchers import launcher_of
from dsv3.machine import this_machine
from dsv3.runs.directory import RunDirectory
from dsv3.runs.identity import run_id
from dsv3.sweep.arms import BASE, Arm
from dsv3.sweep.record import SweepRecord, SweepRun
from dsv3.sweep.runner import Job
from dsv3.sweep.slots import Slots, slots
from dsv3.sweep.tracking import tracked


def resume(words: list[str], *, config_dir: Path | None, retry: bool, as_json: bool) -> int:
    """Go on with one sweep or run from what is frozen in its directories; the exit code.

    Only a run whose directory is not there is composed again, from the record of its sweep. Raises
    ConfigError if that would be another run.
    """
    found = targets(words, verb="resume")
    if len(found) > 1:
        raise ConfigError(Problem(" ".join(words), "one sweep or run at a time", "name one"))
    target = found[0]
    if isinstance(target, FoundSweep):
        return _resume_sweep(target, config_dir, retry=retry, as_json=as_json)
    directory = target.directory
    arm = Arm(BASE, directory.latest_config(), ())
    launcher = launcher_of([arm.config], config_dir)
    refuse_impossible([arm.config], launcher)
    (prepared,) = prepare_all([arm], launcher)
    directory.check_frozen(prepared.fingerprint)
    return train_one(arm, directory, launcher, retry=retry, as_json=as_json)


def _resume_sweep(
    target: FoundSweep, config_dir: Path | None, *, retry: bool, as_json: bool
) -> int:
    record = target.record
    arms = [_arm(record, run, config_dir) for run in record.runs]
    configs = [arm.config for arm in arms]
    launcher = launcher_of(configs, config_dir)
    refuse_impossible(configs, launcher)
    on_cluster = isinstance(launcher, ClusterLauncher)
    room = Slots(()) if on_cluster else slots(configs, this_machine())
    jobs = []
    for number, (arm, run, data) in enumerate(
        zip(arms, record.runs, prepare_all(arms, launcher), strict=True), start=1
    ):
        directory = record.directory(run)
        if directory.exists():
            directory.check_frozen(data.fingerprint)
        else:
            directory = make_directory(arm, data, launcher)
        jobs.append(Job(number, len(arms), arm, directory))
    if isinstance(launcher, ClusterLauncher):
        directories, told = [job.directory for job in jobs], {"retry": retry, "as_json": as_json}
        return hand_in(launcher, arms, directories, name=record.id, **told)
    return run_sweep(record, target.root, jobs, room, retry=retry, as_json=as_json)


def _arm(record: SweepRecord, run: SweepRun, config_dir: Path | None) -> Arm:
    directory = record.directory(run)
    config = (
        directory.latest_config()
        if directory.exists()
        else _composed(record, run, directory, config_dir)
    )
    return Arm(run.arm, config, run.overrides)


def _composed(
    record: SweepRecord, run: SweepRun, directory: RunDirectory, config_dir: Path | None
) -> RunConfig:
    from dsv3.config.compose import compose

    composed = compose(run.overrides, config_dir=config_dir).config
    config = composed.model_copy(update={"run_root": str(record.run_root)})
    if run_id(config) != run.id:
        rule = f"its directory is gone, and `{' '.join(run.overrides)}` is {run_id(config)} now"
        remedy = "ask for the sweep anew with `dsv3 train`"
        if config_dir is None:
            remedy += ", or give the --config-dir it was asked for with"
        raise ConfigError(Problem(str(directory.path), rule, remedy))
    return tracked(config, record, run.arm)
