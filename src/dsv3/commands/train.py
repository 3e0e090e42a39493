"""`dsv3 train`: every arm composed, refused or prepared before the first of them starts."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv3.commands import console
from dsv3.commands.dry_run import print_dry_run
from dsv3.commands.lint import warn
from dsv3.config.root import RunConfig
from dsv3.errors import (
    ArmsFailedError,
    CheckpointError,
    Dsv3Error,
    InterruptedError_,
    LockHeldError,
    Problem,
    SavedForRequeueError,
)
from dsv3.launch.environment import threads_per_rank
from dsv3.launch.local import launch, refuse_several_ranks
from dsv3.machine import this_machine
from dsv3.plan.capacity import check_capacity
from dsv3.plan.description import describe
from dsv3.runs.directory import RunDirectory, Status, check_run_root
from dsv3.runs.lock import refuse_held
from dsv3.runs.provenance import collect
from dsv3.sweep.arms import BASE, Arm
from dsv3.sweep.expand import sweep_of

if TYPE_CHECKING:
    from dsv3.data.prepared import Prepared

STOPPED = (SavedForRequeueError.exit_code, InterruptedError_.exit_code)
POLL_S = 1.0


@dataclass(frozen=True)
class Outcome:
    """How one arm ended; `trained` is False where there was nothing left to do."""

    arm: Arm
    directory: RunDirectory
    exit_code: int
    trained: bool

    def record(self) -> dict[str, Any]:
        """One entry of `--json`."""
        return self.arm.record() | {
            "directory": str(self.directory.path),
            "status": str(self.directory.status()),
            "exit_code": self.exit_code,
            "trained": self.trained,
            "result": self.directory.result(),
            "failure": self.directory.failure(),
        }


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
    """Train one run, or the arms of a sweep one after the other; returns the exit code.

    Everything that can be known beforehand (configuration, capacity, data, directories) is
    checked for every arm before the first one starts. `strict` refuses known traps, too.
    """
    sweep = sweep_of(overrides, multirun=multirun, config_dir=config_dir)
    arms = sweep.arms
    warn([arm.config for arm in arms], strict=strict, quiet=as_json)
    if dry_run:
        print_dry_run(sweep, as_json=as_json)
        return 0
    _refuse_impossible(arms)
    prepared = _prepare_all(arms)
    directories = [_directory(arm, data) for arm, data in zip(arms, prepared, strict=True)]
    outcomes: list[Outcome] = []
    for arm, directory in zip(arms, directories, strict=True):
        outcomes.append(_train_arm(arm, directory, wait=multirun, retry=retry, quiet=as_json))
        if outcomes[-1].exit_code in STOPPED:
            break
    return _conclude(outcomes, as_json=as_json)


def _refuse_impossible(arms: Sequence[Arm]) -> None:
    machine = this_machine()
    for arm in arms:
        check_capacity(arm.config, machine)
        refuse_several_ranks(arm.config)
        run = RunDirectory.of(arm.config)
        if not run.exists():
            _refuse_must(arm.config, run)
            check_run_root(arm.config.run_root)


def _refuse_must(config: RunConfig, run: RunDirectory) -> None:
    """Raise CheckpointError if the run has to be there already; ranks look at its checkpoints."""
    if config.checkpoint.resume == "must":
        rule, remedy = f"there is no run {run.path} to go on with", "checkpoint.resume=auto begins"
        raise CheckpointError(Problem("checkpoint.resume=must", rule, f"{remedy} it"))


def _prepare_all(arms: Sequence[Arm]) -> "list[Prepared]":
    """Prepare the text of every arm; arms that ask for the same text share it."""
    from dsv3.commands.progress import preparation_progress
    from dsv3.data.prepare import prepare

    seen: dict[str, Prepared] = {}
    result = []
    with preparation_progress() as progress:
        for arm in arms:
            config = arm.config
            key = f"{config.data.model_dump_json()} {config.model.vocab_size}"
            if key not in seen:
                vocab_size = config.model.vocab_size
                seen[key] = prepare(config.data, vocab_size=vocab_size, progress=progress)
            _refuse_too_little(config, seen[key])
            result.append(seen[key])
    return result


def _refuse_too_little(config: RunConfig, prepared: "Prepared") -> None:
    """Raise DataError unless the text fills a batch and leaves something to evaluate on."""
    from dsv3.data.samples import TrainingSamples, validation_samples

    schedule = config.schedule
    length, batch_size = schedule.sequence_length, schedule.global_batch_size
    TrainingSamples(prepared, length, config.seed, batch_size=batch_size)
    validation_samples(prepared, length, config.evaluation.sequences)


def _directory(arm: Arm, data: "Prepared") -> RunDirectory:
    provenance = collect(
        arm.config,
        argv=sys.argv,
        data_fingerprint=data.fingerprint,
        threads_per_rank=threads_per_rank(arm.config),
    )
    return RunDirectory.create_or_open(arm.config, overrides=arm.overrides, provenance=provenance)


def _train_arm(
    arm: Arm, directory: RunDirectory, *, wait: bool, retry: bool, quiet: bool
) -> Outcome:
    status = directory.status()
    if status is Status.RUNNING and wait:
        status = _wait_for(directory, quiet=quiet)
    if status is Status.DONE:
        return Outcome(arm, directory, 0, trained=False)
    if status is Status.FAILED and not retry:
        return Outcome(arm, directory, _failed_before(directory, quiet=quiet), trained=False)
    try:
        exit_code = _launch(arm, directory, quiet=quiet)
    except Dsv3Error as error:
        if not wait:
            raise
        exit_code = console.report(error)
    if exit_code == LockHeldError.exit_code and wait and directory.status() is Status.RUNNING:
        # Another process was quicker to the lock, after we had looked.
        return _train_arm(arm, directory, wait=wait, retry=retry, quiet=quiet)
    return Outcome(arm, directory, exit_code, trained=True)


def _failed_before(directory: RunDirectory, *, quiet: bool) -> int:
    """Say how the run failed the last time; returns the exit code it ended with."""
    failure = directory.failure()
    assert failure is not None, f"{directory.path} is said to have failed"
    if not quiet:
        for problem in failure["problems"]:
            console.note(f"error[{failure['id']}]: {Problem(**problem)}")
        console.note(f"{directory.path} ended so before; --retry tries it again")
    return int(failure["exit_code"])


def _launch(arm: Arm, directory: RunDirectory, *, quiet: bool) -> int:
    refuse_held(directory.lock_path)
    if not quiet:
        label = "" if arm.name == BASE else f"{arm.name}: "
        console.note(f"{label}{describe(arm.config)}")
        console.note(f"run directory: {directory.path}")
    return launch(directory.path, arm.config, quiet=quiet)


def _wait_for(directory: RunDirectory, *, quiet: bool) -> Status:
    """Let another process that trains this arm come to its end."""
    if not quiet:
        console.note(f"waiting for another process that trains {directory.path}")
    while (status := directory.status()) is Status.RUNNING:
        time.sleep(POLL_S)
    return status


def _conclude(outcomes: Sequence[Outcome], *, as_json: bool) -> int:
    """Print every arm's result and failure; the exit code of them all."""
    codes = [outcome.exit_code for outcome in outcomes]
    if as_json:
        console.write_json({"runs": [outcome.record() for outcome in outcomes]})
    elif len(outcomes) == 1:
        _print_one(outcomes[0])
    else:
        _print_table(outcomes)
    stopped = [code for code in codes if code in STOPPED]
    if stopped:
        return stopped[0]
    if len(codes) > 1 and any(codes):
        return ArmsFailedError.exit_code
    return codes[0]


def _print_one(outcome: Outcome) -> None:
    result = outcome.directory.result()
    if result is not None:
        again = "" if outcome.trained else " (it was done already; nothing was trained)"
        console.write(f"run              {outcome.directory.path}{again}")
        console.write(f"validation loss  {result['loss']:.4f} nats per token")
        console.write(f"unigram entropy  {result['unigram_entropy']:.4f} nats per token")
        console.write(f"bits per byte    {result['bpb']:.4f}")


def _print_table(outcomes: Sequence[Outcome]) -> None:
    rows = []
    for outcome in outcomes:
        result = outcome.directory.result()
        figures = (f"{result['loss']:.4f}", f"{result['bpb']:.4f}") if result else ("", "")
        status = str(outcome.directory.status())
        done = status if outcome.trained else f"{status} before"
        seed = str(outcome.arm.config.seed)
        rows.append((outcome.arm.name, seed, done, *figures, str(outcome.directory.path)))
    console.write_table(
        ("arm", "seed", "status", "validation loss", "bits per byte", "run directory"), rows
    )
