"""The samples of a step under a ramp: each once, in order, however they are cut."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dsv3.config.compose import compose
from dsv3.parallel.mesh import place_of
from dsv3.train.loop import _micro_batches
from dsv3.train.position import Position

RAMP = ["model=moe_nano", "schedule.batch_size_quantum=2"]  # steps of 2, 4, 6 and 8 samples


class Numbered:
    """Sample n is the token n, over and over."""

    sequence_length = 3

    def __getitem__(self, n: int) -> Any:
        return np.full(4, n, dtype=np.int32)


@pytest.mark.parametrize(
    ("largest", "cuts"),
    [
        (8, [[2], [4], [6], [8]]),
        (4, [[2], [4], [3, 3], [4, 4]]),
        (1, [[1] * n for n in (2, 4, 6, 8)]),
    ],
)
def test_a_run_uses_every_sample_once_and_in_order(largest: int, cuts: list[list[int]]) -> None:
    overrides = [*RAMP, "schedule.sequence_length=3", "schedule.total_tokens=10_000"]
    config = compose([*overrides, f"schedule.micro_batch_size={largest}"]).config
    position, used, seen = Position(), [], []
    while position.tokens < config.schedule.total_tokens:
        trainer: Any = SimpleNamespace(
            config=config,
            position=position,
            samples=Numbered(),
            device=torch.device("cpu"),
            ranks=SimpleNamespace(place=place_of(config.parallelism, 0)),
        )
        batches = _micro_batches(trainer, 0.3)
        sizes = [len(ids_BS) for ids_BS, *_ in batches]
        if sizes not in seen:
            seen.append(sizes)
        used += [int(sample_S[0]) for ids_BS, *_ in batches for sample_S in ids_BS]
        position = position.after_step(config.schedule)
    assert used == list(range(position.samples))
    assert seen == cuts


@pytest.mark.parametrize("layout", ["dp2", "ep2"])
def test_ranks_share_out_the_samples_of_each_step(layout: str) -> None:
    overrides = [*RAMP, "schedule.sequence_length=3", "schedule.total_tokens=10_000"]
    config = compose([*overrides, f"parallelism={layout}", "schedule.micro_batch_size=2"]).config
    position = Position()
    while position.tokens < config.schedule.total_tokens:
        after, used = position.after_step(config.schedule), []
        for rank in range(2):
            trainer: Any = SimpleNamespace(
                config=config,
                position=position,
                samples=Numbered(),
                device=torch.device("cpu"),
                ranks=SimpleNamespace(place=place_of(config.parallelism, rank)),
            )
            batches = _micro_batches(trainer, 0.0)
            used += [int(sample_S[0]) for ids_BS, *_ in batches for sample_S in ids_BS]
        assert used == list(range(position.samples, after.samples))
        position = after
