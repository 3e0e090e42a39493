"""Signals only set a flag, and the first one decides.

They are raised for this thread: sent to the process, the kernel may give them to a thread that a
library left behind, which does not hold them.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from dsv3.errors import InterruptedError_, SavedForRequeueError
from dsv3.train.signals import STOP_SIGNALS, StopRequest, hold_stop_signals, stop_with_launcher


@pytest.fixture(autouse=True)
def hang_up_ends() -> Iterator[None]:
    """Also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "error", "code"),
    [
        (signal.SIGTERM, SavedForRequeueError, 85),
        (signal.SIGUSR1, SavedForRequeueError, 85),
        (signal.SIGHUP, SavedForRequeueError, 85),
        (signal.SIGINT, InterruptedError_, 130),
    ],
)
def test_a_signal_is_remembered_and_becomes_its_exit_code(
    number: signal.Signals, error: type[Exception], code: int
) -> None:
    with StopRequest() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
    raised = stop.as_error(12)
    assert isinstance(raised, error)
    assert raised.exit_code == code
    assert str(raised) == f"{number.name}: saved at step 12; ask for the same run again to go on"


def test_further_signals_change_nothing() -> None:
    with StopRequest() as stop:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.raise_signal(number)
        assert stop.signal is signal.SIGINT


def test_the_handlers_of_before_come_back() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopRequest():
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_under_nohup_a_hang_up_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_held_signal_waits_for_the_request() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        hold_stop_signals()
        signal.raise_signal(signal.SIGUSR1)  # not held, it would end this process
        with StopRequest() as stop:
            assert stop.signal is signal.SIGUSR1
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_rank_that_nobody_launched_follows_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSV3_LAUNCHER_PID", raising=False)
    with StopRequest() as stop:
        stop_with_launcher()
        assert not stop.requested


def test_a_launcher_that_died_before_the_rank_looked_counts_too() -> None:
    code = (
        "from dsv3.train.signals import StopRequest, stop_with_launcher\n"
        "with StopRequest() as stop:\n"
        "    stop_with_launcher()\n"
        "    print(stop.signal.name)\n"
    )
    gone = subprocess.Popen(["true"])
    gone.wait()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "DSV3_LAUNCHER_PID": str(gone.pid),
    }
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout == "SIGTERM\n"
