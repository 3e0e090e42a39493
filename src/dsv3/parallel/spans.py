"""What a rank spends its time on, while a step is recorded; otherwise a call that does nothing.

One recording at a time for a process, as with logging: forwards, messages and the optimizer are
deep in packages that know nothing of each other.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple

Category = Literal["forward", "backward", "wait", "all_to_all", "optimizer", "other"]


class Span(NamedTuple):
    """Something a rank did, by its own clock in seconds; `args` says of what (part, ...)."""

    category: Category
    name: str
    start_s: float
    end_s: float
    args: dict[str, int]


class _Recording(NamedTuple):
    spans: list[Span]
    clock: Callable[[], float]
    settle: Callable[[], None]


_NOTHING = contextlib.nullcontext()
_recording: _Recording | None = None


def span(category: Category, name: str, **args: int) -> AbstractContextManager[None]:
    """While in the `with` block, this is what the rank does; spans may lie in one another."""
    return _NOTHING if _recording is None else _timed(_recording, category, name, args)


def start(
    settle: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.perf_counter
) -> None:
    """Record from here on. `settle` waits until the device has done what it was given.

    It is called at both ends of every span: on a GPU, where calls return at once, a span would
    otherwise be the time of the call. So a recorded step is slower than others there.
    """
    global _recording  # noqa: PLW0603 - see the top of the file
    assert _recording is None, "a step is recorded already"
    _recording = _Recording([], clock, settle)


def stop() -> list[Span]:
    """End the recording; its spans in the order in which they ended, none if there was none."""
    global _recording
    ended, _recording = _recording, None
    return [] if ended is None else ended.spans


@contextlib.contextmanager
def _timed(
    recording: _Recording, category: Category, name: str, args: dict[str, int]
) -> Iterator[None]:
    recording.settle()
    start_s = recording.clock()
    try:
        yield
    finally:
        recording.settle()
        recording.spans.append(Span(category, name, start_s, recording.clock(), args))
