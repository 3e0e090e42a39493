"""Waits of tests end: by the clock, but for a machine that stood still."""

import subprocess
import sys

import pytest

import patience
from patience import Stopwatch, errors_of, wait_until


class Clock:
    """Time that passes when it is asked for, and while somebody sleeps."""

    def __init__(self, *gaps_s: float) -> None:
        self._now_s, self._gaps_s = 0.0, list(gaps_s)

    def monotonic(self) -> float:
        self._now_s += self._gaps_s.pop(0) if self._gaps_s else 0.25
        return self._now_s

    def sleep(self, _seconds: float) -> None:
        pass


def test_a_gap_counts_a_moment_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "time", Clock(5.0, 0.25, 60.0, 0.5))
    watch = Stopwatch()
    assert [watch.look() for _ in range(3)] == [0.25, 1.25, 1.75]


def test_what_never_comes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "time", Clock())
    looks = []
    with pytest.raises(AssertionError, match="never: it ends"):
        wait_until(lambda: looks.append(1), "it ends", seconds=15.0)
    assert len(looks) == 60


def test_a_process_that_stays_is_told() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        with pytest.raises(AssertionError, match=r"still there after 0.5 s"):
            errors_of(process, seconds=0.5)
        process.kill()


def test_what_a_process_said_is_returned_however_long_it_took() -> None:
    code = "import sys, time; print(1, file=sys.stderr, flush=True); time.sleep(0.6); sys.exit('2')"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert errors_of(process, seconds=60.0) == "1\n2\n"
