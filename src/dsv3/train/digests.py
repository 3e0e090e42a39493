"""`run.digests`: hashes that two runs have in common if they are equal bit for bit.

Every step is hashed, and everything that a checkpoint has to carry: what a resumed run took up
wrongly differs from an uninterrupted run's, if not in a loss, then here.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dsv3.checkpoint.random_state import advance_streams, capture_random_state
from dsv3.engine.engine import TrainingEngine
from dsv3.plan.scheduled import Scheduled
from dsv3.train.layers import ModelLayers
from dsv3.train.load import Load
from dsv3.train.position import Position
from dsv3.train.ranks import Ranks
from dsv3.train.reporter import Record, Reports

State = Callable[[], Mapping[str, Any]]
"""The trainer's, as it goes into checkpoints: asked for only if it is hashed."""

LOSSES = ("loss", "objective", "balance_loss", "mtp_loss", "grad_norm")
"""Figures of a step's line that are kept to the last bit, beside what is scheduled."""

KINDS = {
    "master": "masters",
    "exp_avg": "exp_avg",
    "exp_avg_sq": "exp_avg_sq",
    "ema": "ema",
    "buffer": "buffers",
}
"""Name in the final line of each kind of the engine's fragments."""


class Digests:
    """Takes note of what training does; here of nothing: `run.digests` is off."""

    def take(self, micro_batches: Sequence[Sequence[Tensor]], load: Load) -> None:
        """Take this rank's batch of a step, and the load of all ranks."""

    def step(self, line: Record, position: Position, state: State) -> None:
        """Take the line of the step that led to `position`, and what it left (collective)."""

    def final(self, position: Position, state: State) -> None:
        """Take everything there is at the end of the run (collective)."""


class StepDigests(Digests):
    """Writes a line a step, and one for the final state, to digests.jsonl.

    Nothing in training draws random numbers, so a stream that a resume forgot would show nowhere.
    Therefore each step draws one from every stream and hashes where that leaves it: training is
    the same, and streams tell how many steps they have been through.
    """

    def __init__(
        self,
        ranks: Ranks,
        engine: TrainingEngine,
        layers: ModelLayers,
        scheduled: Iterable[Scheduled],
        reporter: Reports,
        *,
        data_fingerprint: str,
    ) -> None:
        self._ranks = ranks
        self._engine = engine
        self._layers = layers
        self._figures = (*LOSSES, *(each.name for each in scheduled))
        self._reporter = reporter
        self._data_fingerprint = data_fingerprint
        self._batch: str | None = None  # None: the step had none, or was not made
        self._loads: dict[str, str] = {}

    def take(self, micro_batches: Sequence[Sequence[Tensor]], load: Load) -> None:
        """Take this rank's batch of a step, and the load of all ranks."""
        ids_and_labels = (tensor for batch in micro_batches for tensor in batch[:2])
        self._batch = _of_tensors(ids_and_labels)
        loads = load.tokens_per_expert.items()
        self._loads = {name: _of_tensors([load_E]) for name, load_E in loads}

    def step(self, line: Record, position: Position, state: State) -> None:
        """Take the line of the step that led to `position`, and what it left (collective)."""
        device = self._ranks.device
        advance_streams(device)
        streams = _of_each(capture_random_state(device))
        of_ranks = self._ranks.all_gather({"batch": self._batch, "streams": streams})
        biases_LE = self._layers.biases()
        self._reporter.digests(
            {
                **position.state(),
                **{name: _exact(line[name]) for name in self._figures if name in line},
                "batch": [each["batch"] for each in of_ranks],
                "tokens_per_expert": self._loads,
                "biases": {
                    name: _of_tensors([bias_E])
                    for name, bias_E in zip(self._layers.names, biases_LE, strict=True)
                },
                "streams": [each["streams"] for each in of_ranks],
                "state": _of_each(state()),
            }
        )
        self._batch, self._loads = None, {}

    def final(self, position: Position, state: State) -> None:
        """Take everything there is at the end of the run (collective)."""
        of_ranks = self._ranks.all_gather(self._of_fragments())
        self._reporter.digests(
            {
                "kind": "final",
                "step": position.step,
                "position": position.state(),
                "optimizer_step": self._engine.optimizer_step,
                "data_fingerprint": self._data_fingerprint,
                "state": _of_each(state()),
                **{name: [each[name] for each in of_ranks] for name in KINDS.values()},
            }
        )

    def _of_fragments(self) -> dict[str, str]:
        hashes = {kind: hashlib.sha256() for kind in KINDS}
        for key, shape, offset, data, _ in self._engine.fragments():
            of_kind = hashes[key.partition("/")[0]]
            of_kind.update(json.dumps([key, shape, offset, str(data.dtype)]).encode())
            of_kind.update(_bytes(data))
        return {name: hashes[kind].hexdigest() for kind, name in KINDS.items()}


def of_json(value: Any) -> str:
    """SHA-256 of a value as JSON: the same for the same value, whatever order its keys have."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _of_each(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: of_json(value) for name, value in values.items()}


def _of_tensors(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    # As bytes first: numpy has no BF16.
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _exact(value: Any) -> Any:
    """A number as `float.hex` spells it, which JSON and a reader keep to the last bit."""
    return [_exact(each) for each in value] if isinstance(value, list) else float(value).hex()
