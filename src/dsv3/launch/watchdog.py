"""Which ranks are silent: their signs of life against the limits they declared themselves."""

import time
from collections.abc import Collection
from dataclasses import dataclass

from dsv3.runs.board import Board, Sign

_LOOKS_PER_TIMEOUT = 4
_LATE_S = 1.0


@dataclass(frozen=True)
class Silence:
    """A rank that gave no sign of life within its limit."""

    rank: int
    seconds: float
    sign: Sign


class Watchdog:
    """Looks a few times per timeout, and sleeps in between.

    Whoever halts the launcher (Ctrl-Z, a frozen container) halts the ranks as well: after a look
    that comes late every rank has its time again.
    """

    def __init__(self, board: Board, timeout_s: float) -> None:
        self._board = board
        self._period_s = timeout_s / _LOOKS_PER_TIMEOUT
        self._since_s = time.monotonic()
        self._next_s = self._since_s + self._period_s

    def look(self, ranks: Collection[int]) -> list[Silence]:
        """Those of `ranks` that are beyond their limit."""
        now_s = time.monotonic()
        if now_s > self._next_s + _LATE_S:
            self._since_s = now_s
        self._next_s = now_s + self._period_s
        silences = (self.silence(rank, now_s) for rank in ranks)
        return [each for each in silences if each.seconds > each.sign.limit_s]

    def silence(self, rank: int, now_s: float) -> Silence:
        """How long a rank has given no sign of life."""
        sign = self._board.read(rank)
        return Silence(rank, now_s - max(sign.at_s, self._since_s), sign)

    def rest_s(self) -> float:
        """Seconds until the next look."""
        return max(0.0, self._next_s - time.monotonic())
