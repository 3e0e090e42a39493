"""Every rank has random streams of its own, and keeps them: also those a larger layout adds."""

import json
import signal

import pytest

from dsv3.checkpoint.random_state import (
    advance_streams,
    capture_random_state,
    restore_random_state,
    seed_streams,
)
from dsv3.train.digests import of_json
from faults.storm import Attempt, lines, starts, words

STEPS, STOPPED = 30, 10
SEED = 1  # of conf/base.yaml


@pytest.fixture(scope="module")
def moved(tmp_path_factory) -> tuple[list[list[dict[str, str]]], int]:
    """Digests of the streams by step and rank, of a run of two ranks that goes on with four."""
    home = tmp_path_factory.mktemp("streams")
    command = words(home, steps=STEPS, layout="ep2")
    two = Attempt(home, "runs", command)
    assert two.watch(lambda: two.steps_made >= STOPPED)
    two.process.send_signal(signal.SIGTERM)
    assert two.process.wait(60) == 85
    four = Attempt(home, "runs", [*command, "parallelism=ep4"])
    assert not four.watch(lambda: False)
    assert four.process.returncode == 0, (home / "output.txt").read_text()
    began = starts(four.run)[-1]
    assert STOPPED <= began < STEPS
    found = [json.loads(line)["streams"] for line in lines(four.run, "digests.jsonl")[:STEPS]]
    return found, began


def expected(rank: int, first: int, last: int) -> list[dict[str, str]]:
    """Digests after each step up to `last`, of a rank that got its streams after step `first`."""
    before = capture_random_state()
    try:
        seed_streams(SEED, rank, step=first)
        found = []
        for _ in range(first, last):
            advance_streams()
            found.append({k: of_json(v) for k, v in capture_random_state().items()})
        return found
    finally:
        restore_random_state(before)


@pytest.mark.slow
@pytest.mark.distributed
def test_streams_of_every_rank_after_a_move_from_two_ranks_to_four(moved):
    streams, began = moved
    assert [len(of_ranks) for of_ranks in streams] == [2] * began + [4] * (STEPS - began)
    for rank in (0, 1):
        assert [of_ranks[rank] for of_ranks in streams] == expected(rank, 0, STEPS)
    for rank in (2, 3):
        own = [of_ranks[rank] for of_ranks in streams[began:]]
        assert own == expected(rank, began, STEPS)
    for of_ranks in streams:
        for stream in ("python", "numpy", "torch_cpu"):
            assert len({of_rank[stream] for of_rank in of_ranks}) == len(of_ranks)
