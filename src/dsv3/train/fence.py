"""Whether this attempt is still the run's last one, looked at now and then."""

import time

from dsv3.errors import Problem, StaleAttemptError
from dsv3.runs.directory import RunDirectory

_EVERY_S = 2.0


class Fence:
    """Of the first rank; that of any other rank is never stale by itself.

    Nothing of a stale attempt is kept: checkpoints and the result ask again when they are
    published. This one ends it soon, so that its lines of metrics do not go on among the others.
    """

    def __init__(self, run: RunDirectory, *, is_first: bool) -> None:
        self._run = run
        self._is_first = is_first
        self._next_s = time.monotonic() + _EVERY_S

    def stale(self) -> bool:
        """Whether a later attempt has begun."""
        if not self._is_first or time.monotonic() < self._next_s:
            return False
        self._next_s = time.monotonic() + _EVERY_S
        return self._run.is_stale()

    def as_error(self) -> StaleAttemptError:
        """What ends the ranks."""
        rule = "a later attempt at this run has begun: this one ends, and keeps nothing more"
        return StaleAttemptError(Problem(str(self._run.path), rule))
