"""The weights of a checkpoint in a model without an engine: what an evaluation computes with."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dsv3.checkpoint.collective import Solo
from dsv3.checkpoint.manifest import Identity
from dsv3.checkpoint.reader import Checkpoint, checkpoint_paths, open_checkpoint
from dsv3.checkpoint.tensors import read_into
from dsv3.config.root import RunConfig
from dsv3.errors import CheckpointError, Problem
from dsv3.runs.directory import RunDirectory
from dsv3.runs.identity import identity_digest


class Found(NamedTuple):
    """A checkpoint, good to the last byte, and why newer ones were passed over."""

    checkpoint: Checkpoint
    skipped: list[str]


class Whole(NamedTuple):
    """A global tensor as one fragment."""

    key: str
    shape: tuple[int, ...]
    offset: int
    data: Tensor
    saved_here: bool


def find_checkpoint(run: RunDirectory, config: RunConfig, step: int | None) -> Found:
    """The checkpoint of `step`, or the newest good one; reads only, whoever trains the run.

    Raises CheckpointError if there is none, or if that of `step` is not good.
    """
    paths = checkpoint_paths(run.checkpoints)
    wanted = [path for path in paths if step is None or path.name == f"step-{step}"]
    if not wanted:
        raise CheckpointError(_missing(run, paths, step))
    identity = Identity(run_id=run.id, config_sha256=identity_digest(config))
    skipped: list[Problem] = []
    for path in wanted:
        try:
            checkpoint = open_checkpoint(path, identity)
            checkpoint.verify(Solo())
        except CheckpointError as error:
            skipped.append(_why(path, error, config))
        else:
            return Found(checkpoint, list(map(str, skipped)))
    raise CheckpointError(skipped)


def load_weights(
    checkpoint: Checkpoint, model: nn.Module, config: RunConfig, *, ema: bool = False
) -> None:
    """Fill parameters, rounding the FP32 masters as the engine does, and persistent buffers.

    With `ema` from their average, which buffers have none of: biases are no parameters.
    One tensor at a time. Raises CheckpointError if one is missing, or the checkpoint has gone.
    """
    kind = "ema" if ema else "master"
    kept = model.state_dict(keep_vars=True)
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    try:
        for name, parameter in model.named_parameters():
            master = torch.empty(parameter.numel())
            _read(checkpoint, f"{kind}/{name}", parameter.shape, master)
            parameter.data.copy_(master.view_as(parameter))
        for name, buffer in buffers.items():
            value = torch.empty(buffer.numel(), dtype=buffer.dtype)
            _read(checkpoint, f"buffer/{name}", buffer.shape, value)
            buffer.copy_(value.view_as(buffer))
    except CheckpointError as error:
        raise CheckpointError(_why(checkpoint.path, error, config)) from error


def _read(checkpoint: Checkpoint, key: str, shape: torch.Size, data: Tensor) -> None:
    read_into(checkpoint, [Whole(key, tuple(shape), 0, data, saved_here=False)])


def _missing(run: RunDirectory, paths: list[Path], step: int | None) -> Problem:
    steps = ", ".join(path.name.removeprefix("step-") for path in reversed(paths))
    if step is not None and paths:
        rule = f"there is no checkpoint of this step; those of {run.checkpoints}: {steps}"
        return Problem(f"--step {step}", rule, "name one of them, or none for the newest")
    rule = "the run has no checkpoint yet" if run.result() is None else "the checkpoints are gone"
    remedy = "let it train to its first, see checkpoint.every_steps"
    return Problem(str(run.checkpoints), rule, remedy if run.result() is None else "restore one")


def _why(path: Path, error: CheckpointError, config: RunConfig) -> Problem:
    if path.exists():
        return Problem("", str(error), "name another with --step, or restore this one")
    rule = f"was removed while it was read: the run keeps its newest {config.checkpoint.keep}"
    return Problem(str(path), rule, "evaluate again, without --step for the newest")
