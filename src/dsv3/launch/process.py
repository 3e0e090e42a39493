"""Starts the process of a rank or of an evaluation."""

import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

from dsv3.errors import CapacityError, Problem
from dsv3.launch.signals import FORWARDED
from dsv3.runs.rank import STACK_SIGNAL

Process = subprocess.Popen[bytes]


def start(
    command: Sequence[str], environment: Mapping[str, str], *, output: IO[bytes] | None = None
) -> Process:
    """Start a process with the signals it is to handle blocked.

    It has this one's terminal, or with `output` none. A signal that comes while it still imports
    waits until it is ready to save, and does not kill it. Raises CapacityError if it cannot be
    started.
    """
    return _start(command, environment, **_apart(output))


def start_member(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    descriptors: Iterable[int],
    output: IO[bytes] | None,
) -> Process:
    """Start one of several ranks, as `start`; with `output` it has no terminal.

    It begins by ignoring what asks for its stacks: asked before it can answer, or while it ends, it
    does not die of it. Raises as `start`.
    """
    previous: Any = signal.signal(STACK_SIGNAL, signal.SIG_IGN)
    try:
        return _start(command, environment, pass_fds=tuple(descriptors), **_apart(output))
    finally:
        signal.signal(STACK_SIGNAL, previous)


def _apart(output: IO[bytes] | None) -> dict[str, Any]:
    """Streams of a process without a terminal."""
    if output is None:
        return {}
    return {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}


def _start(command: Sequence[str], environment: Mapping[str, str], **options: Any) -> Process:
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    try:
        return subprocess.Popen(command, env=environment, **options)  # noqa: S603 - no shell
    except OSError as error:
        problem = Problem(command[0], f"cannot be started ({error})", "see `dsv3 doctor`")
        raise CapacityError(problem) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
