"""What an evaluation leaves in the run directory: its figures and the experts' load as an array.

evaluation.json         every figure, and what was evaluated on what; written last
expert_load.safetensors tokens_per_expert int64 [domains, layers, experts], relative_load FP64 of
                        the same shape (load over even load), sequence_peaks int64 [domains,
                        layers], sequences int64 [domains]; `names` in its metadata is JSON with
                        the domains and the layers in order

Nothing in them depends on the clock: the same evaluation writes the same bytes.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save

from dsv3.config.root import RunConfig
from dsv3.errors import CheckpointError
from dsv3.files import storage_error, sync_directory, write_atomically
from dsv3.runs.directory import RunDirectory
from dsv3.runs.files import read_json, write_json
from dsv3.train.domain_load import DomainLoad
from dsv3.train.evaluation import Evaluation
from dsv3.train.position import Position

Weights = Literal["trained", "ema"]
FIGURES, LOAD = "evaluation.json", "expert_load.safetensors"


def save_evaluation(
    run: RunDirectory,
    config: RunConfig,
    device: torch.device,
    position: Position,
    evaluation: Evaluation,
    *,
    by_training: bool,
    weights: Weights = "trained",
) -> Path:
    """Write both files of an evaluation at `position`; returns their directory.

    That of other weights than the trained ones is a directory of its own, named after them.
    Each file is replaced whole. Only training replaces what was computed with other arithmetic
    (threads, device ...); others leave it and write beside it. Raises CapacityError if the
    storage fails.
    """
    arithmetic = _arithmetic(config, device)
    directory = run.evaluation(position.step, config.evaluation.sequences)
    if weights != "trained":
        directory = directory.with_name(f"{directory.name}-{weights}")
    if not by_training:
        directory = _beside(directory, arithmetic)
    content = _load_file(evaluation.load)
    writer = "training" if by_training else None  # there is one, under the lock of the run
    try:
        directory.mkdir(parents=True, exist_ok=True)
        sync_directory(run.evaluations)
        sync_directory(run.path)
        write_atomically(directory / LOAD, content, writer=writer)
    except OSError as error:
        remedy = "free some space there, or make it writable"
        raise storage_error(directory, error, remedy) from error
    record = {
        "step": position.step,
        "tokens": position.tokens,
        "weights": weights,
        **evaluation.figures(),
        "evaluated": {
            "sequences": config.evaluation.sequences,
            "sequence_length": config.schedule.sequence_length,
            "data_fingerprint": run.provenance()["data_fingerprint"],
        },
        "computed_with": arithmetic,
        # A figure file and an array of two evaluations cannot be taken for one.
        "expert_load": {"file": LOAD, "sha256": hashlib.sha256(content).hexdigest()},
    }
    write_json(directory / FIGURES, record, writer=writer)
    return directory


def _beside(directory: Path, arithmetic: dict[str, Any]) -> Path:
    """`directory`, or if other arithmetic is recorded there one named by what differs."""
    try:
        there = read_json(directory / FIGURES)["computed_with"]
        differs = {key: value for key, value in arithmetic.items() if there.get(key) != value}
    except (CheckpointError, KeyError, AttributeError):
        return directory  # nothing there, or nothing anyone could use
    words = [directory.name, *(f"{key}-{value}" for key, value in differs.items())]
    return directory.with_name("-".join(words))


def _load_file(load: DomainLoad) -> bytes:
    tensors = {
        "tokens_per_expert": load.tokens_per_expert,
        "relative_load": load.relative_load(),
        "sequence_peaks": load.sequence_peaks,
        "sequences": load.sequences,
    }
    names = {"domains": load.domains, "layers": load.layers}
    # One entry: the library writes several in an order that changes from process to process.
    content: bytes = save(tensors, metadata={"names": json.dumps(names)})
    return content


def _arithmetic(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """What rounding may depend on."""
    return {
        "precision": config.precision.recipe,
        "batch_size": config.schedule.micro_batch_size,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "compile": config.launcher.compile,
        "torch": torch.__version__,
    }
