"""Saves on file systems of its own, each too small for a third checkpoint; imports no torch.

`full_disk_process.py MOUNT_POINT RUN_ID`, where mounts are private: prints a JSON line per size.
"""

import json
import subprocess
import sys
from pathlib import Path

from dsv3.checkpoint import durable
from dsv3.checkpoint.collective import Solo
from dsv3.checkpoint.manifest import Identity, TensorRecord
from dsv3.checkpoint.reader import checkpoint_paths, open_checkpoint
from dsv3.checkpoint.writer import Entry, Header, write_checkpoint
from dsv3.errors import CapacityError

ELEMENTS = 10_000
RECORD = TensorRecord(shape=(ELEMENTS,), dtype="F32", offset=0, length=ELEMENTS)
PAGE_KIB, SIZES = 4, 40
SMALLEST_KIB = 284  # two checkpoints and hardly more


def save(directory: Path, identity: Identity, step: int) -> str:
    """Save and say how it went."""
    content = [step.to_bytes(4, "little") * (ELEMENTS // 2)] * 2
    try:
        write_checkpoint(
            directory,
            Header(identity, step, step, 1, {}),
            [Entry(f"master/{name}", RECORD, content) for name in "abc"],
            state={"step": step},
            rank_state={},
            collective=Solo(),
        )
    except CapacityError as error:
        return str(error)
    return "saved"


def good(directory: Path, identity: Identity) -> list[int]:
    """Steps of the checkpoints, all of which must be whole."""
    found = [open_checkpoint(path, identity) for path in checkpoint_paths(directory)]
    for checkpoint in found:
        checkpoint.verify(Solo())
    return [checkpoint.step for checkpoint in found]


def main(mount: Path, identity: Identity) -> None:
    """Fill, make room, go on."""
    for number in range(SIZES):
        size = SMALLEST_KIB + number * PAGE_KIB
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", mount], check=True)
        directory = mount / "checkpoints"
        said = [save(directory, identity, step) for step in (1, 2, 3)]
        left = sorted(path.name for path in directory.iterdir())
        kept = good(directory, identity)
        subprocess.run(["mount", "-o", "remount,size=4m", mount], check=True)
        after = save(directory, identity, 3)
        line = {"kib": size, "said": said, "left": left, "good": kept, "after": after}
        print(json.dumps(line | {"then": good(directory, identity)}), flush=True)
        subprocess.run(["umount", mount], check=True)


if __name__ == "__main__":
    assert "torch" not in sys.modules
    durable.SPARE_BYTES = -(1 << 30)  # so that the disk itself is what refuses
    main(Path(sys.argv[1]), Identity(run_id=sys.argv[2], config_sha256="a" * 64))
