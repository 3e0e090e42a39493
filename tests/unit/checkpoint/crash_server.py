"""Forks a process for every crash point: imports are paid once, and counted in none of them.

Reads `ACTION DIRECTORY SHIM` lines; SHIM is `-`, or, to do without a tracer, `CALL:N` to be killed
before the N-th CALL, `CALL:N:ERROR` to have it fail. Says the pid, waits for a byte (so that a
tracer can attach), acts, and says how the process ended: the number of a signal, negative, or its
exit code.
"""

import ctypes
import errno
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

from dsv3.checkpoint.collective import Solo
from dsv3.checkpoint.durable import clean
from dsv3.checkpoint.manifest import Identity, TensorRecord
from dsv3.checkpoint.store import CheckpointStore
from dsv3.checkpoint.writer import Entry, Header, write_checkpoint
from dsv3.errors import CapacityError

RUN_ID = "crashes"
IDENTITY = Identity(run_id=RUN_ID, config_sha256="a" * 64)
ELEMENTS = 64
TENSORS = "abc"
KEEP = 2
FAILED, SWALLOWED = 3, 4
PR_SET_PTRACER, PTRACER_ANY = 0x59616D61, -1


def save(directory: Path, step: int, *, attempt: int) -> None:
    """A checkpoint in which every number is that of the attempt."""
    record = TensorRecord(shape=(ELEMENTS,), dtype="F32", offset=0, length=ELEMENTS)
    half = attempt.to_bytes(4, "little") * (ELEMENTS // 2)
    write_checkpoint(
        directory,
        Header(IDENTITY, step, step, attempt, {}),
        [Entry(f"master/{name}", record, [half, half]) for name in TENSORS],
        state={"number": attempt},
        rank_state={"number": attempt},
        collective=Solo(),
    )


def replace(directory: Path) -> None:
    """Save a step again that is there already."""
    save(directory, 30, attempt=2)


def append(directory: Path) -> None:
    """Save a new step."""
    save(directory, 40, attempt=2)


def retain(directory: Path) -> None:
    """Remove the old ones."""
    CheckpointStore(directory, IDENTITY).retain(KEEP)


def tidy(directory: Path) -> None:
    """What the start after a crash does."""
    clean(directory)


def all_of_it(directory: Path) -> None:
    """A save that replaces a step, one of a new step, and retention."""
    replace(directory)
    append(directory)
    retain(directory)


ACTIONS = {action.__name__: action for action in (replace, append, retain, tidy, all_of_it)}


class Fuse:
    """Kills this process right before the N-th call of one kind, or has that call fail."""

    def __init__(self, call: str, number: str, error: str | None = None) -> None:
        self.call, self.left, self.error = call, int(number), error

    def passes(self, call: str) -> None:
        """A call is about to be made."""
        if call == self.call:
            self.left -= 1
            if self.left == 0 and self.error is not None:
                number = getattr(errno, self.error)
                raise OSError(number, os.strerror(number))
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Stand before the calls of a save: those of `os`, and files opened for writing."""
        fuse = self

        class Watched(io.FileIO):
            def write(self, data: Any) -> int:
                fuse.passes("write")
                return super().write(data)

            def close(self) -> None:
                if not self.closed:
                    fuse.passes("close")
                super().close()

        real_open = io.open

        def watched_open(file: Any, mode: str = "r", buffering: int = -1, *more: Any) -> Any:
            if "x" not in mode and "w" not in mode:
                return real_open(file, mode, buffering, *more)
            fuse.passes("openat")
            assert buffering == 0, "a file that the shim cannot follow"
            return Watched(file, mode.replace("b", ""))

        io.open = watched_open  # type: ignore[assignment]
        for call in ("fsync", "rename", "unlink", "rmdir", "mkdir"):
            self._stand_before(call)

    def _stand_before(self, call: str) -> None:
        real = getattr(os, call)

        def watched(*arguments: Any, **keywords: Any) -> Any:
            self.passes(call)
            return real(*arguments, **keywords)

        setattr(os, call, watched)


def act(action: str, directory: Path, shim: str) -> int:
    """In the forked process: the exit code."""
    os.read(0, 1)
    fuse = Fuse(*shim.split(":")) if shim != "-" else None
    if fuse is not None:
        fuse.install()
    try:
        ACTIONS[action](directory)
    except CapacityError:
        return FAILED
    return SWALLOWED if fuse is not None and fuse.left <= 0 else 0


def main() -> None:
    """Serve until stdin ends."""
    for line in iter(_line, ""):
        action, directory, shim = line.split()
        pid = os.fork()
        if pid == 0:
            # Where only ancestors may trace, this lets anybody.
            ctypes.CDLL(None).prctl(PR_SET_PTRACER, PTRACER_ANY, 0, 0, 0)
            os.write(1, f"{os.getpid()}\n".encode())
            code = 70
            try:
                code = act(action, Path(directory), shim)
            finally:
                os._exit(code)
        status = os.waitpid(pid, 0)[1]
        os.write(1, f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _line() -> str:
    """Unbuffered: the next byte may be for the forked process."""
    line = b""
    while byte := os.read(0, 1):
        if byte == b"\n":
            break
        line += byte
    return line.decode()


if __name__ == "__main__":
    sys.stdout.flush()
    main()
