"""A rank that trains as always, and at one moment of it sends a signal to itself or its launcher.

Run as `python -m faulty_rank RUN_DIR ...`, with FAULT as JSON: the rank, the moment, how many times
that moment passes by before, and `signals` as [name, "self" | "launcher"]; FAULT_HOME is where the
pids of all ranks are written, and a file when the fault fires. Moments are what a process
does to files, or modules it imports: no function of dsv3 is replaced.
"""

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsv3.runs.rank import LAUNCHER_PID_VARIABLE
from dsv3.train import worker

HOME = Path(os.environ["FAULT_HOME"])
RANK = int(os.environ.get("RANK", "0"))
WRITING = os.O_WRONLY | os.O_RDWR
# Long enough for a launcher to pass a signal on, so that it has arrived when the moment is over.
ARRIVES_S = 0.3


def moment_of(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The moment in one word and a name; None for everything that is none."""
    if event == "import":
        return f"import {arguments[0]}"
    if event == "open" and isinstance(arguments[0], str | os.PathLike):
        kind = "write" if arguments[2] & WRITING else "read"
        return f"{kind} {Path(arguments[0]).name}"
    if event == "os.rename":
        return f"rename {Path(arguments[1]).name}"
    return None


class Fault:
    """Signals to send when a moment passes by for the n-th time."""

    def __init__(self, *, moment: str, signals: list[list[str]], nth: int = 1) -> None:
        self._moment, self._signals, self._left = re.compile(moment), signals, nth
        self._lock = threading.Lock()

    def see(self, moment: str) -> None:
        """A moment passes by, in any thread."""
        if self._moment.fullmatch(moment) is None:
            return
        with self._lock:
            self._left -= 1
            if self._left != 0:
                return
        with (HOME / f"fired-{RANK}").open("a") as file:
            file.write(f"{moment}\n")
        for name, whom in self._signals:
            pid = os.getpid() if whom == "self" else int(os.environ[LAUNCHER_PID_VARIABLE])
            os.kill(pid, signal.Signals[name])
            time.sleep(ARRIVES_S)


def watch() -> None:
    """Look at everything from now on."""
    faults = [Fault(**f) for f in json.loads(os.environ["FAULT"]) if f.pop("rank") == RANK]

    def see(moment: str) -> None:
        for fault in faults:
            fault.see(moment)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("import", "open", "os.rename"):
            moment = moment_of(event, arguments)
            if moment is not None:
                see(moment)

    _tell_after("fsync", "synced", see)
    _tell_after("write", "wrote", see)
    sys.addaudithook(hook)


def _tell_after(call: str, word: str, see: Callable[[str], None]) -> None:
    """The interpreter does not tell of these."""
    real = getattr(os, call)

    def told(descriptor: int, *arguments: Any) -> Any:
        result = real(descriptor, *arguments)
        see(f"{word} {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        return result

    setattr(os, call, told)


if __name__ == "__main__":
    (HOME / f"pid-{RANK}").write_text(str(os.getpid()))
    watch()
    sys.exit(worker.main())
