"""Memory of saving and loading, in a process of its own: bounded by the shard, whatever happens."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsv3.checkpoint.durable import READ_BYTES
from dsv3.checkpoint.tensors import CHUNK_ELEMENTS
from patience import HANG_S
from unit.checkpoint.memory_process import EARLY_SAVES, MIB, SAVES, TENSOR_MIB, TENSORS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")

SHARD = TENSORS * TENSOR_MIB * MIB
# Threads, their stacks, imports at first use, what the allocator holds.
OTHER = 8 * MIB


def watched(what: str, directory: Path) -> dict[str, Any]:
    command = [sys.executable, Path(__file__).parent / "memory_process.py", what, directory]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(what, found)
    return found


def test_a_save_needs_a_copy_of_the_shard_and_a_load_needs_chunks(tmp_path, record_property):
    found = watched("shard", tmp_path)
    for key, value in found.items():
        record_property(f"{key}_mib", round(value / MIB))
    # The copy, and a mask of a chunk (a byte an element) that tells whether it is finite.
    assert SHARD <= found["save"] < SHARD + CHUNK_ELEMENTS + OTHER
    assert found["second_save"] < 2 * CHUNK_ELEMENTS + OTHER, "the copy is made once"
    # What is read to be hashed, then one slice after the other.
    assert found["load"] < max(2 * READ_BYTES, 2 * 4 * CHUNK_ELEMENTS) + OTHER
    assert found["load"] < SHARD / 3, "smaller than anything that would tell"


def test_slow_storage_holds_training_up_and_memory_does_not_grow(tmp_path, record_property):
    found = watched("slow", tmp_path)
    record_property("growth", round(found["late"] / found["early"] - 1, 4))
    assert found["throttled_calls"] >= 5 * SAVES, "the storage was slow"
    assert found["waited"] > SAVES / 2, "saves came quicker than they could be written"
    assert EARLY_SAVES < SAVES
    assert found["late"] <= 1.1 * found["early"]
    assert found["threads"] <= 2
    assert found["descriptors"] < 20
    assert found["kept"] == [f"step-{SAVES - 1}", f"step-{SAVES}"]
