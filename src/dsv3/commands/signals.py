"""Asked to stop outside of training: clean up as for Ctrl-C, and end so that a queue asks again.

While ranks run the launcher has handlers of its own. Only the standard library is imported here.
"""

import signal
from types import FrameType

_STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class StoppedError(KeyboardInterrupt):
    """A signal other than Ctrl-C asked this process to end."""


def raise_when_stopped() -> None:
    """Turn stop signals into StoppedError; those the caller ignores (nohup) stay ignored."""
    for number in _STOP:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _raise)


def _raise(number: int, _frame: FrameType | None) -> None:
    raise StoppedError(signal.Signals(number).name)
