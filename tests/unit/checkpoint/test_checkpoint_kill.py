"""kill -9 at a random moment of a save: what is there afterwards is whole, and never a mix."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from dsv3.checkpoint.collective import Solo
from dsv3.checkpoint.durable import clean, read_chunks
from dsv3.checkpoint.reader import checkpoint_paths, open_checkpoint

TRIALS = 12


def numbers_inside(path: Path, identity) -> set[int]:
    """Every save number found anywhere in a checkpoint, which is verified first."""
    checkpoint = open_checkpoint(path, identity)
    checkpoint.verify(Solo())
    data = b"".join(read_chunks(path / "rank-00000.safetensors"))
    data = data[8 + int.from_bytes(data[:8], "little") :]
    tensors = {int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)}
    state = checkpoint.rank_state(0)
    assert state is not None
    return tensors | {checkpoint.state["number"], state["number"], checkpoint.root.attempt}


def test_a_killed_save_leaves_the_previous_or_the_new_one(tmp_path, identity):
    generator = random.Random(7)
    killed_in_a_save = 0
    for _ in range(TRIALS):
        process = subprocess.Popen(
            [
                sys.executable,
                Path(__file__).parent / "writer_process.py",
                tmp_path,
                identity.run_id,
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for _ in range(4):
            assert process.stdout.readline().strip(), "the writer saves"
        time.sleep(generator.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        finished = 4 + len(process.stdout.read().split())
        assert process.wait(10) == -signal.SIGKILL
        killed_in_a_save += any(path.name.startswith(".") for path in tmp_path.iterdir())

        clean(tmp_path)
        steps = {path.name for path in tmp_path.iterdir()}
        assert steps == {"step-0", "step-1", "step-2"}
        held = [numbers_inside(path, identity) for path in checkpoint_paths(tmp_path)]
        assert all(len(numbers) == 1 for numbers in held), "never a mix"
        newest = max(max(numbers) for numbers in held)
        assert newest in (finished, finished + 1)  # killed before it could say so
        oldest = min(min(numbers) for numbers in held)
        assert oldest >= newest - 3
    assert killed_in_a_save > 0, "the kills fell into saves"
