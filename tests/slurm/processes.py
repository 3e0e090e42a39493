"""Processes that a cluster started: found by pid and start time, never by name."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import time
from pathlib import Path

POLL_S = 0.02
SET_PDEATHSIG = 1
libc = ctypes.CDLL(None)


def started_at(pid: int) -> int | None:
    """Clock ticks since boot at which a process began; None if there is none, or a dead one."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


class Daemons:
    """Daemons by name, in a file, so that another process can end exactly these.

    Unless they are to `stay`, they die with the process that started them, however it ends.
    """

    def __init__(self, path: Path, *, stay: bool = False) -> None:
        self._path = path
        self._stay = stay

    def start(self, name: str, command: list[str], env: dict[str, str], log: Path) -> None:
        """Start a daemon in the foreground of a session of its own."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
                preexec_fn=None if self._stay else _die_with_parent,
            )
        born = started_at(process.pid)
        self._write(self._read() | {name: [process.pid, born or 0]})

    def running(self, name: str) -> bool:
        """Whether a daemon of this name was started and is alive."""
        pid, born = self._read().get(name, (0, 0))
        _reap(pid)
        return pid != 0 and started_at(pid) == born

    def names(self) -> list[str]:
        """Those that were started and not ended by `end`."""
        return list(self._read())

    def pid(self, name: str) -> int:
        """The pid of one that was started."""
        return self._read()[name][0]

    def end(self, name: str, number: int = signal.SIGTERM, patience_s: float = 10) -> None:
        """Send a signal, wait, and kill what is left of it then."""
        pid, born = self._read().get(name, (0, 0))
        for each, patience in ((number, patience_s), (signal.SIGKILL, 5)):
            if pid and started_at(pid) == born:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, each)
                _wait_gone(pid, born, patience)
        self._write({key: value for key, value in self._read().items() if key != name})

    def _read(self) -> dict[str, list[int]]:
        try:
            found: dict[str, list[int]] = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        return found

    def _write(self, daemons: dict[str, list[int]]) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(daemons))
        new.rename(self._path)


def _die_with_parent() -> None:
    libc.prctl(SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _wait_gone(pid: int, born: int, patience_s: float) -> None:
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        _reap(pid)
        if started_at(pid) != born:
            return
        time.sleep(POLL_S)


def _reap(pid: int) -> None:
    """Where the daemon is a child of this process, its remains are in the way."""
    with contextlib.suppress(ChildProcessError):
        if pid > 0:
            os.waitpid(pid, os.WNOHANG)


def with_environment(wanted: dict[str, str]) -> list[int]:
    """Pids of the processes that began with all of these variables."""
    entries = {f"{name}={value}".encode() for name, value in wanted.items()}
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if entries <= set((entry / "environ").read_bytes().split(b"\0")):
                    found.append(int(entry.name))
    return found


def kill(pids: list[int]) -> None:
    """Kill -9 each."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
