"""How a rank is asked to save and end: handlers only set a flag, the loop looks at it."""

import os
import signal
from types import FrameType
from typing import Any, Self

from dsv3.errors import Dsv3Error, InterruptedError_, SavedForRequeueError
from dsv3.runs.parent import end_with_parent
from dsv3.runs.rank import LAUNCHER_PID_VARIABLE

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def hold_stop_signals() -> None:
    """Keep stop signals waiting until a `StopRequest` is entered; call before long imports."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def stop_with_launcher() -> None:
    """Get SIGTERM, and so save and end, when the process that launched this rank dies.

    Does nothing for a rank that no local launcher started, or where the kernel is not Linux.
    """
    _follow_launcher(signal.SIGTERM)


def die_with_launcher() -> None:
    """Be killed when the process that launched this rank dies; for one of several ranks.

    It may be blocked on a rank that is not coming back, or be halted itself: only SIGKILL ends
    both. What the group did since its last checkpoint is done again.
    """
    _follow_launcher(signal.SIGKILL)


def _follow_launcher(number: signal.Signals) -> None:
    launcher = os.environ.get(LAUNCHER_PID_VARIABLE)
    if launcher is not None:
        end_with_parent(int(launcher), number)


class StopRequest:
    """While entered, a stop signal is only remembered; `requested` says whether one came.

    Enter it as early as a rank can save, leave it last. The first signal decides the exit code:
    130 for SIGINT, 85 (please requeue) for the others; further ones change nothing. With
    `deaf_afterwards` not even once it is left: a process that only has to say how it ended is not
    killed by the same signal from another side.
    """

    def __init__(self, *, deaf_afterwards: bool = False) -> None:
        self._deaf_afterwards = deaf_afterwards
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether to save and end after the current step."""
        return self.signal is not None

    def as_error(self, step: int) -> Dsv3Error:
        """The error that ends this process once everything up to `step` is saved."""
        return stopped_by_signal(self.number, step)

    @property
    def number(self) -> int:
        """The signal's number, 0 if none came: for ranks to agree on."""
        return 0 if self.signal is None else int(self.signal)

    def __enter__(self) -> Self:
        for number in STOP_SIGNALS:
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # under nohup, and to stay so
            self._previous[number] = signal.signal(number, self._remember)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if self._deaf_afterwards else handler)
        self._previous.clear()

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)


def stopped_by_signal(number: int, step: int) -> Dsv3Error:
    """The error that ends a rank once everything up to `step` is saved; `number` is not 0."""
    asked = signal.Signals(number)
    where = f"saved at step {step}" if step > 0 else "before the first step"
    text = f"{asked.name}: {where}; ask for the same run again to go on"
    return InterruptedError_(text) if asked is signal.SIGINT else SavedForRequeueError(text)
