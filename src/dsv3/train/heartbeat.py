"""A rank's signs of life: given by the thread that trains, read by the launcher of its machine."""

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from dsv3.errors import Dsv3Error
from dsv3.files import storage_error
from dsv3.runs.board import NO_STEP, STARTING, Board, Sign
from dsv3.runs.rank import BOARD_VARIABLE, STACK_SIGNAL, Place

TRAINING = "training"
ENDING = "ending"


class Heartbeat:
    """Tells the launcher that this rank comes forward; without one it tells nobody.

    Only the thread that made it may beat: a beat from another one would go on while this one
    hangs. Every rank enters the same phases, and the barrier at the end of one is part of it:
    who waits for a rank that saves is silent as long as that rank is busy.
    """

    def __init__(self, board: Board | None, rank: int, timeout_s: float) -> None:
        self._board = board
        self._rank = rank
        self._timeout_s = timeout_s
        self._thread = threading.get_ident()
        self._phases: list[tuple[str, float]] = []
        self._step = NO_STEP
        self._has_failed = False

    @classmethod
    def attach(cls, place: Place) -> "Heartbeat":
        """The one of this process: on the launcher's board if it gave us one."""
        given = os.environ.get(BOARD_VARIABLE)
        if given is None:
            return cls(None, place.rank, 0.0)
        descriptor, _, timeout_s = given.partition(":")
        os.set_inheritable(int(descriptor), False)
        return cls(Board(int(descriptor), place.world_size), place.rank, float(timeout_s))

    def beat(self, step: int | None = None) -> None:
        """Say that work goes on, within a phase or in training; `step`: the last that is done.

        Call it after each micro batch, batch of an evaluation or tensor of a checkpoint: whatever
        is sure to take less than `run.heartbeat_timeout`, or than the limit of the phase.
        """
        if step is not None:
            self._step = step
        self._sign(*(self._phases[-1] if self._phases else (TRAINING, self._timeout_s)))

    @contextlib.contextmanager
    def phase(self, name: str, limit_s: float) -> Iterator[None]:
        """While in the `with` block, silence may last `limit_s` between beats."""
        before = self._now()
        self._phases.append((name, limit_s))
        self.beat()
        try:
            yield
        finally:
            self._phases.pop()
            self._sign(*before)

    def end(self, limit_s: float) -> None:
        """Say that nothing is left but to let go of everything, which may take `limit_s`."""
        self._phases.append((ENDING, limit_s))
        self.beat()

    def fail(self, error: Dsv3Error, *, lasting: bool) -> bool:
        """Leave the error that ends this rank to the launcher; False if there is none to say it.

        The first one stands. `lasting`: asked for again, the run would most likely fail again.
        """
        if self._board is None:
            return False
        if not self._has_failed:
            self._board.fail(self._rank, error, lasting=lasting)
        self._has_failed = True
        return True

    def _now(self) -> tuple[str, float]:
        """Phase and limit in force."""
        if self._board is None:
            return STARTING, 0.0
        sign = self._board.read(self._rank)
        return sign.phase, sign.limit_s

    def _sign(self, phase: str, limit_s: float) -> None:
        here = threading.get_ident()
        assert here == self._thread, "a beat from another thread says nothing of the one that works"
        if self._board is not None:
            self._board.write(self._rank, Sign(time.monotonic(), limit_s, phase, self._step))


def answer_with_stacks(path: Path) -> None:
    """Write the stack of every thread to `path` whenever the launcher asks, even while blocked.

    The C library runs the handler, so neither the interpreter nor its lock has to be free.
    Raises CapacityError if the file cannot be made.
    """
    try:
        file = path.open("w", encoding="ascii", buffering=1)
    except OSError as error:
        raise storage_error(path, error, "make the run directory writable") from error
    file.write(f"main 0x{threading.main_thread().ident:016x}\n")
    faulthandler.register(STACK_SIGNAL, file=file, all_threads=True, chain=False)
