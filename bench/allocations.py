"""What torch's allocator gives out on the host, counted by a library that is loaded before libc.

torch's profiler sees the thread it was started in, and what gloo's threads give back is missing
from its sums.
"""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")


def has_compiler() -> bool:
    """Whether there is a C compiler to build the library with."""
    return shutil.which("cc") is not None


def build(directory: Path) -> Path:
    """Compile the library into `directory`; raises CalledProcessError."""
    library = directory / "liballocations.so"
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def environment(library: Path) -> dict[str, str]:
    """What a process has to be started with, so that its allocations are counted."""
    return os.environ | {"LD_PRELOAD": str(library)}


class Counter:
    """The counts of this process, which was started with `environment`."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        for name in ("counted_live", "counted_peak"):
            getattr(self._library, name).restype = ctypes.c_size_t

    @property
    def live(self) -> int:
        """Bytes given out and not taken back."""
        return int(self._library.counted_live())

    @property
    def peak(self) -> int:
        """The most since `start`."""
        return int(self._library.counted_peak())

    def start(self) -> None:
        """Forget the peak so far."""
        self._library.start_peak()
