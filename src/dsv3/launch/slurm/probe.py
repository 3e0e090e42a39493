"""What a node says of itself: `srun ... python -m dsv3.launch.slurm.probe DIRECTORY TOKEN`.

Reads a file the front machine wrote, writes one as a checkpoint is written (fsync, rename), and
prints one line of JSON.
"""

import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import dsv3
from dsv3.files import write_atomically
from dsv3.machine import this_machine

WRITTEN_HERE = "from-the-front"
PREFIX = "dsv3-probe "
_NCCL = ("NCCL_", "TORCH_NCCL_", "GLOO_", "UCX_")


def main(argv: Sequence[str] | None = None) -> int:
    """Look, write and tell."""
    directory, token = sys.argv[1:] if argv is None else argv
    node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    found: dict[str, object] = {"node": node, "host": socket.gethostname()}
    found |= {"dsv3": dsv3.__version__, "numerics": dsv3.NUMERICS_VERSION}
    try:
        found["sees"] = (Path(directory) / WRITTEN_HERE).read_text(encoding="ascii") == token
        write_atomically(Path(directory) / f"from-{node}", token.encode())
        found["writes"] = (Path(directory) / f"from-{node}").read_text(encoding="ascii") == token
    except OSError as error:
        found["problem"] = str(error)
    found["gpus"] = [gpu.name for gpu in this_machine().gpus]
    found["variables"] = {k: v for k, v in sorted(os.environ.items()) if k.startswith(_NCCL)}
    sys.stdout.write(f"{PREFIX}{json.dumps(found)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
