"""Random streams survive JSON exactly."""

import json
import random

import numpy as np
import pytest
import torch

from dsv3.checkpoint.random_state import capture_random_state, restore_random_state
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
