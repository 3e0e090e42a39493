"""Runs on real text: no step of a healthy one is a spike, a poisoned batch is one at once (F22)."""

import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsv3.engine.distributed import process_group
from dsv3.train.loop import Trainer, train_step
from dsv3.train.reporter import Reports
from numerics.small_training import training

LENGTH, BATCH = 32, 8
SPIKE = 1e4  # times the gradient


class Text:
    """Bytes of the standard library; sample n is a function of (seed, n)."""

    def __init__(self, seed: int) -> None:
        files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        self.bytes = np.frombuffer(b"".join(file.read_bytes() for file in files), dtype=np.uint8)
        self.seed = seed

    def __getitem__(self, n: int) -> np.ndarray:
        begin = np.random.default_rng((self.seed, n)).integers(len(self.bytes) - LENGTH - 1)
        return self.bytes[begin : begin + LENGTH + 1].astype(np.int64)


class Noise:
    """A poisoned batch: ids that no text has, in no order."""

    def __getitem__(self, n: int) -> np.ndarray:
        return np.random.default_rng(n).integers(128, 256, size=LENGTH + 1)


class Heard(Reports):
    """Keeps events."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def event(self, name: str, **fields: Any) -> None:
        self.events.append({"event": name, **fields})


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    torch.set_num_threads(1)
    with process_group(torch.device("cpu")):
        yield


def healthy(seed: int, steps: int, then: Callable[[Trainer], None]) -> list[dict[str, Any]]:
    """Train on text; `then` spoils the trainer for one more step. The spikes that were reported."""
    overrides = [
        f"seed={seed}",
        "model.initializer_range=0.006",
        "model.hidden_size=32",
        "optimizer.gradient_clipping=1.0",
        f"schedule.sequence_length={LENGTH}",
        f"schedule.global_batch_size={BATCH}",
        "schedule.micro_batch_size=8",
        f"schedule.total_tokens={max(steps, 1000) * LENGTH * BATCH}",
        "balance=aux_free_seq",
        "mtp=depth1",
        "health.on_spike=report",
    ]
    with training(*overrides) as trainer:
        trainer.samples, trainer.reporter = Text(seed), Heard()
        losses = [train_step(trainer)["loss"] for _ in range(steps)]
        assert np.mean(losses[-20:]) < losses[0] - 1.5, "this is no training"
        then(trainer)
        train_step(trainer)
        return trainer.reporter.events


def larger_gradients(trainer: Trainer) -> None:
    for parameter in trainer.model.parameters():
        parameter.register_hook(lambda gradient: gradient * SPIKE)


def noise(trainer: Trainer) -> None:
    trainer.samples = Noise()


def check(seed: int, steps: int, then: Callable[[Trainer], None], figure: str) -> None:
    spikes = healthy(seed, steps, then)
    assert {(spike["event"], spike["step"]) for spike in spikes} == {("spike", steps + 1)}
    assert figure in [spike["figure"] for spike in spikes]


def test_larger_gradients_are_found_in_their_step() -> None:
    check(1, 150, larger_gradients, "grad_norm")


def test_a_poisoned_batch_is_found_in_its_step() -> None:
    check(2, 150, noise, "loss")


@pytest.mark.faults
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_2000_healthy_steps_raise_no_alarm(seed: int) -> None:
    check(seed, 2000, noise, "loss")
