"""What is refused or prepared for every run of a command before the first of them starts."""

import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dsv3.config.root import RunConfig
from dsv3.errors import CheckpointError, DataError, Problem
from dsv3.launch.launcher import ClusterLauncher, Launcher
from dsv3.runs.directory import RunDirectory, check_run_root
from dsv3.runs.provenance import collect
from dsv3.sweep.arms import Arm

if TYPE_CHECKING:
    from dsv3.data.prepared import Prepared


def refuse_impossible(configs: Iterable[RunConfig], launcher: Launcher) -> None:
    """Raise CapacityError or ConfigError for what cannot run where it is to."""
    for config in configs:
        launcher.refuse(config)


def refuse_unmakeable(configs: Iterable[RunConfig]) -> None:
    """Raise if the directory of a new run cannot be made, or it has to be there already."""
    for config in configs:
        run = RunDirectory.of(config)
        if not run.exists():
            _refuse_must(config, run)
            check_run_root(config.run_root)


def _refuse_must(config: RunConfig, run: RunDirectory) -> None:
    """Raise CheckpointError if the run has to be there already; ranks look at its checkpoints."""
    if config.checkpoint.resume == "must":
        rule, remedy = f"there is no run {run.path} to go on with", "checkpoint.resume=auto begins"
        raise CheckpointError(Problem("checkpoint.resume=must", rule, f"{remedy} it"))


def prepare_all(arms: Sequence[Arm], launcher: Launcher) -> "list[Prepared]":
    """Prepare the text of every run, showing progress; runs that ask for the same text share it.

    For a cluster it has to be prepared already: login machines are no place for it. Raises
    DataError if it is not, or is missing, malformed, or too little for a run.
    """
    from dsv3.commands.progress import preparation_progress
    from dsv3.data.prepare import NotPreparedError, prepare

    seen: dict[str, Prepared] = {}
    result = []
    with preparation_progress() as progress:
        for arm in arms:
            config, vocab_size = arm.config, arm.config.model.vocab_size
            key = f"{config.data.model_dump_json()} {vocab_size}"
            if key not in seen:
                try:
                    seen[key] = prepare(
                        config.data,
                        vocab_size=vocab_size,
                        progress=progress,
                        only_open=isinstance(launcher, ClusterLauncher),
                    )
                except NotPreparedError as error:
                    raise DataError(_prepare_first(arm, error)) from None
            _refuse_too_little(config, seen[key])
            result.append(seen[key])
    return result


def _prepare_first(arm: Arm, error: DataError) -> Problem:
    """The problem of text that is not there yet, with the line that makes it."""
    about = [word for word in arm.overrides if re.match(r"(data|model)[.=]", word)]
    words = " ".join(shlex.quote(word) for word in about)
    (first, *_) = error.problems
    line = f"dsv3 data prepare {words}".rstrip()
    return Problem(first.setting, first.rule, f"run `{line}` first")


def _refuse_too_little(config: RunConfig, prepared: "Prepared") -> None:
    """Raise DataError unless the text fills a batch and leaves something to evaluate on."""
    from dsv3.data.samples import TrainingSamples, validation_samples

    schedule = config.schedule
    length, batch_size = schedule.sequence_length, schedule.global_batch_size
    TrainingSamples(prepared, length, config.seed, batch_size=batch_size)
    validation_samples(prepared, length, config.evaluation.sequences)


def make_directory(arm: Arm, data: "Prepared", launcher: Launcher) -> RunDirectory:
    """Make or open the directory of a run; raises as `RunDirectory.create_or_open`."""
    provenance = collect(
        arm.config,
        argv=sys.argv,
        data_fingerprint=data.fingerprint,
        threads_per_rank=launcher.threads_per_rank(arm.config),
    )
    return RunDirectory.create_or_open(arm.config, overrides=arm.overrides, provenance=provenance)
