"""Ranks as threads, and small checkpoints without torch."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv3.checkpoint.collective import Solo
from dsv3.checkpoint.manifest import Identity, TensorRecord
from dsv3.checkpoint.writer import Entry, Header, write_checkpoint

IDENTITY = Identity(run_id="moe-nano-0123", config_sha256="a" * 64)


class ThreadRank:
    """One of several ranks that live in threads of this process."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, board: list[Any]) -> None:
        self.rank, self.size, self._barrier, self._board = rank, size, barrier, board

    def all_gather(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._barrier.wait(20)
        values = list(self._board)
        self._barrier.wait(20)
        return values

    def broadcast(self, value: Any) -> Any:
        return self.all_gather(value)[0]


def run_ranks(size: int, body: Callable[[Any], Any]) -> list[Any]:
    """Call `body(collective)` on every rank; return each rank's result or exception."""
    barrier, board = threading.Barrier(size), [None] * size
    results: list[Any] = [None] * size

    def one(rank: int) -> None:
        try:
            results[rank] = body(ThreadRank(rank, size, barrier, board))
        except Exception as error:  # noqa: BLE001 - handed to the test
            results[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def small_entries(seed: int, *, tensors: int = 4, elements: int = 500) -> list[Entry]:
    content = bytes((seed * 7 + i * 13) % 251 for i in range(4 * elements))
    record = TensorRecord(shape=(elements,), dtype="F32", offset=0, length=elements)
    return [Entry(f"master/layer.{n}.weight", record, [content]) for n in range(tensors)]


def save_small(
    directory: Path, step: int, *, identity: Identity = IDENTITY, attempt: int = 1
) -> Path:
    return write_checkpoint(
        directory,
        Header(identity, step, step, attempt, {"world_size": 1}),
        small_entries(step),
        state={"cursor": step * 8, "window": [1.5, None, True]},
        rank_state={"python": [3, [1, 2], None]},
        collective=Solo(),
    )


@pytest.fixture
def identity() -> Identity:
    return IDENTITY


@pytest.fixture
def save() -> Callable[..., Path]:
    return save_small


@pytest.fixture
def ranks() -> Callable[[int, Callable[[Any], Any]], list[Any]]:
    return run_ranks
