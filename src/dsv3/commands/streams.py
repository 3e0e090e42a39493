"""Standard streams as a shell may leave them: closed, full, or in an encoding that lacks letters.

Only the standard library is imported here: it runs before every verb.
"""

import contextlib
import os
import sys
from typing import TextIO

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def open_all() -> None:
    """Give closed streams (`>&-`) the null device, and write what cannot be encoded as escapes.

    Otherwise the next file that is opened would become stdout, for our children too, and what is
    printed would end in it.
    """
    for number, (name, mode) in enumerate(_STREAMS):
        if getattr(sys, name) is None:
            _open_null(number)
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a test's, or a notebook's
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def silence(stream: TextIO) -> None:
    """Send the rest to the null device: Python flushes once more at exit and must not fail then."""
    with contextlib.suppress(OSError, ValueError):
        _open_null(stream.fileno())


def _open_null(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null == number:
        os.set_inheritable(null, True)
        return
    os.dup2(null, number)
    os.close(null)
