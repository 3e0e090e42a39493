"""How long a test waits for what has to come, and how long for what has to be gone."""

import subprocess
import time
from collections.abc import Callable, Collection

import psutil

HANG_S = 300.0
"""Only what hangs takes so long: on a busy machine a start of three seconds may take a minute."""
GONE_S = 15.0
"""By contract nobody is left so long after a kill."""
MOMENT_S = 1.0


class Stopwatch:
    """Counts seconds between looks, of each gap a moment at most.

    Who looks many times in a second and then not for a minute stood still, and all others with it:
    shared machines do that to a whole guest.
    """

    def __init__(self) -> None:
        self._seconds, self._looked_s = 0.0, time.monotonic()

    def look(self) -> float:
        """Seconds so far."""
        now_s = time.monotonic()
        self._seconds += min(now_s - self._looked_s, MOMENT_S)
        self._looked_s = now_s
        return self._seconds


def wait_until(holds: Callable[[], object], what: str, *, seconds: float = HANG_S) -> None:
    """Wait for something that has to come true within `seconds`."""
    watch = Stopwatch()
    while not holds():
        assert watch.look() < seconds, f"never: {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process is there, and not just waiting to be asked how it ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(pids: Collection[int]) -> None:
    """Wait for processes that have to end now."""
    wait_until(lambda: not any(map(alive, pids)), f"{pids} are gone", seconds=GONE_S)


def errors_of(process: subprocess.Popen[str], *, seconds: float) -> str:
    """What a process says on stderr until its end, which has to come within `seconds`."""
    watch = Stopwatch()
    while True:
        try:
            return process.communicate(timeout=MOMENT_S / 4)[1]
        except subprocess.TimeoutExpired:
            assert watch.look() < seconds, f"still there after {seconds:g} s"
