"""A command in a terminal of its own, which sends Ctrl-C to all that runs in it."""

import os
import pty
import select
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from patience import HANG_S

CTRL_C = b"\x03"


class Terminal:
    """What is typed into a terminal and shown in it; `code` is the exit code at the end."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self.shown = b""
        self.code: int | None = None
        self._pid, self._descriptor = pid, descriptor
        self._deadline_s = time.monotonic() + HANG_S

    def read(self) -> bool:
        """Read for a moment; False once the command has ended."""
        assert time.monotonic() < self._deadline_s, self.shown.decode()
        try:
            if select.select([self._descriptor], [], [], 0.05)[0]:
                self.shown += os.read(self._descriptor, 1 << 16)
        except OSError:  # what a terminal says at its end
            self.code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self.code is None

    def type(self, keys: bytes) -> None:
        """Send keys."""
        os.write(self._descriptor, keys)

    def close(self) -> None:
        """Kill the command if it runs; what it started goes with the terminal."""
        if self.code is None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._descriptor)


@contextmanager
def in_a_terminal(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str] = os.environ
) -> Iterator[Terminal]:
    """Start a command; it is killed if it has not ended."""
    pid, descriptor = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execve(command[0], command, environment)
    terminal = Terminal(pid, descriptor)
    try:
        yield terminal
    finally:
        terminal.close()
