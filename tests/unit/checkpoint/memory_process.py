"""Saves and loads as a rank does, watches its own memory, and prints what it saw as JSON.

`python memory_process.py WHAT DIRECTORY`. Anonymous memory only: pages of files that are read or
written belong to the kernel, which takes them back.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dsv3.checkpoint.manifest import Identity
from dsv3.checkpoint.saver import Saver
from dsv3.checkpoint.snapshot import Copied
from dsv3.checkpoint.store import CheckpointStore

MIB = 1 << 20
IDENTITY = Identity(run_id="memory", config_sha256="a" * 64)
TENSORS, TENSOR_MIB = 6, 25
SLOW_MIB_PER_S, SLOW_FSYNC_S = 400, 0.002
SAVES, EARLY_SAVES = 50, 5


def anonymous() -> int:
    """Bytes of memory of this process that belong to no file."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


@contextmanager
def peak() -> Iterator[Callable[[], int]]:
    """While entered, watch; the function says how much more than at the start there was at most."""
    begun, seen, over = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.001):
            seen.append(anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: max(seen) - begun
    finally:
        over.set()
        thread.join()


def fragments(tensors: int, mebibytes: float) -> list[Copied]:
    """A shard that is really there."""
    elements = int(mebibytes * MIB) // 4
    return [
        Copied(f"master/{n}.weight", (elements,), 0, torch.full((elements,), float(n)))
        for n in range(tensors)
    ]


def save(saver: Saver, shard: list[Copied], step: int) -> None:
    """Begin a save; as training does, after the one before."""
    saver.begin(
        shard,
        step=step,
        optimizer_step=step,
        attempt=1,
        layout={},
        state={"step": step},
        rank_state={"rank": 0},
        before_publish=lambda: None,
    )


def shard(directory: Path) -> dict[str, object]:
    """The most that a save and a load need beside the shard, which is in memory already."""
    own = fragments(TENSORS, TENSOR_MIB)
    store = CheckpointStore(directory, IDENTITY)
    saver = Saver(store, keep=2)
    with peak() as most:
        save(saver, own, 1)
        saver.finish()
        saved = most()
    with peak() as most:  # the copy is there already
        save(saver, own, 2)
        saver.finish()
        again = most()
    for fragment in own:
        fragment.data.zero_()
    store = CheckpointStore(directory, IDENTITY)  # which has verified nothing yet
    with peak() as most:
        checkpoint = store.find_newest().checkpoint
        assert checkpoint is not None
        store.load(checkpoint, own)
        loaded = most()
    assert all(bool((fragment.data == float(n)).all()) for n, fragment in enumerate(own))
    return {"save": saved, "second_save": again, "load": loaded}


def slow(directory: Path) -> dict[str, object]:
    """Memory after few and after many saves to a storage that is slower than training."""
    real_fsync, slept = os.fsync, []

    def slowly(descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        seconds = SLOW_FSYNC_S + size / (SLOW_MIB_PER_S * MIB)
        slept.append(seconds)
        time.sleep(seconds)
        real_fsync(descriptor)

    os.fsync = slowly
    own, waited = fragments(8, 1), 0
    saver = Saver(CheckpointStore(directory, IDENTITY), keep=2)
    memory, threads = [], []
    for step in range(1, SAVES + 1):
        own[step % 8].data.add_(1.0)  # training goes on, quicker than the storage
        if saver.step is not None:
            waited += saver.writing
            saver.finish()
        save(saver, own, step)
        memory.append(anonymous())
        threads.append(threading.active_count())
    saver.finish()
    return {
        "early": memory[EARLY_SAVES - 1],
        "late": memory[-1],
        "waited": waited,
        "throttled_calls": len(slept),
        "threads": max(threads),
        "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "kept": sorted(path.name for path in directory.iterdir()),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({"shard": shard, "slow": slow}[sys.argv[1]](Path(sys.argv[2]))))
