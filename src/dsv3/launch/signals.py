"""Signals on their way from the launcher to its ranks."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


@contextlib.contextmanager
def signals_as_bytes() -> Iterator[socket.socket]:
    """A socket on which the number of each signal arrives, whichever thread the kernel chose.

    A process that was started with these signals blocked gets those that waited, and blocks them
    again at the end: none is lost, none kills it. Libraries (tokenizers, BLAS) leave threads behind that may be given a signal; a handler alone
    would then not wake the main thread.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    caught = [*FORWARDED, signal.SIGCHLD]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup, and to stay so
        caught.remove(signal.SIGHUP)
    previous: dict[signal.Signals, Any] = {
        number: signal.signal(number, lambda _number, _frame: None) for number in caught
    }
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, caught)
    try:
        yield reader
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.set_wakeup_fd(before)
        for number, handler in previous.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()


def stops_so_far(signals: socket.socket) -> list[int]:
    """The stop signals that have arrived on the socket of `signals_as_bytes`; does not wait."""
    signals.setblocking(False)
    try:
        numbers = signals.recv(64)
    except BlockingIOError:
        return []
    finally:
        signals.setblocking(True)
    return [number for number in numbers if number != signal.SIGCHLD]


def sent_by_terminal(number: int) -> bool:
    """Whether ranks, in our process group, have this SIGINT already: we are in the foreground."""
    if number != signal.SIGINT:
        return False
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
