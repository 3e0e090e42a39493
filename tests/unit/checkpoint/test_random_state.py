"""Random streams survive JSON exactly."""

import json
import random

import numpy as np
import pytest
import torch

from dsv3.checkpoint.random_state import (
    advance_streams,
    capture_random_state,
    restore_random_state,
    seed_streams,
)
from dsv3.errors import CheckpointError


def draw():
    return (
        [random.random(), random.gauss(0, 1)],
        [np.random.random(), np.random.standard_normal()],
        torch.randn(3).tolist() + torch.randint(9, (2,)).tolist(),
    )


@pytest.fixture(autouse=True)
def streams_as_before():
    before = capture_random_state()
    yield
    restore_random_state(before)


def test_streams_go_on_where_they_were():
    draw()  # leaves half a pair of gaussians in two of the three
    state = json.loads(json.dumps(capture_random_state()))
    first, second = draw(), draw()
    assert first != second
    restore_random_state(state)
    assert (draw(), draw()) == (first, second)


@pytest.mark.parametrize("stream", ["python", "numpy", "torch_cpu"])
@pytest.mark.parametrize("fault", [None, "zz", [], {}, [3, [1, 2], None], "00"])
def test_a_malformed_stream_changes_nothing(stream, fault):
    earlier = capture_random_state()
    draw()
    before = capture_random_state()
    with pytest.raises(CheckpointError, match="malformed"):
        restore_random_state(earlier | {stream: fault})
    assert capture_random_state() == before


def test_a_missing_stream_is_named():
    state = capture_random_state()
    del state["numpy"]
    with pytest.raises(CheckpointError, match="numpy"):
        restore_random_state(state)


def test_seeded_streams_are_a_function_of_seed_rank_and_step():
    drawn = {}
    for seed, rank, step in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (2**63 - 1, 3, 10**9)]:
        seed_streams(seed, rank, step=step)
        drawn[seed, rank, step] = draw()
        draw()
        seed_streams(seed, rank, step=step)
        assert draw() == drawn[seed, rank, step]
    for stream in range(3):
        assert len({str(of_all[stream]) for of_all in drawn.values()}) == len(drawn)


def test_every_stream_is_advanced():
    seed_streams(0, 0, step=0)
    before = capture_random_state()
    advance_streams()
    after = capture_random_state()
    assert [name for name in before if before[name] == after[name]] == []
    assert set(before) == {"python", "numpy", "torch_cpu"}
