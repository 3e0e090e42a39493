"""Spans are recorded between start and stop, and cost nothing elsewhere."""

from collections.abc import Iterator

import pytest

from dsv3.parallel import spans
from dsv3.parallel.spans import Span, span


@pytest.fixture(autouse=True)
def _stopped() -> Iterator[None]:
    yield
    spans.stop()


class Clock:
    """Ticks once whenever it is read."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def __call__(self) -> float:
        self.time_s += 1
        return self.time_s


def test_without_a_recording_nothing_is_made() -> None:
    assert span("forward", "f", part=0) is span("wait", "w")
    with span("forward", "f"), span("wait", "w"):
        pass
    assert spans.stop() == []


def test_spans_are_recorded_also_in_one_another() -> None:
    spans.start(clock=Clock())
    with span("forward", "forward", part=1, micro_batch=3), span("all_to_all", "dispatch"):
        pass
    assert spans.stop() == [
        Span("all_to_all", "dispatch", 2.0, 3.0, {}),
        Span("forward", "forward", 1.0, 4.0, {"part": 1, "micro_batch": 3}),
    ]
    assert spans.stop() == []


def test_a_span_that_fails_ends() -> None:
    spans.start(clock=Clock())
    with pytest.raises(KeyError), span("other", "fails"):
        raise KeyError
    assert [each.name for each in spans.stop()] == ["fails"]


def test_the_device_settles_before_a_clock_is_read() -> None:
    told: list[str] = []

    def clock() -> float:
        told.append("clock")
        return 0.0

    spans.start(settle=lambda: told.append("settle"), clock=clock)
    with span("forward", "f"):
        told.append("work")
    assert told == ["settle", "clock", "work", "settle", "clock"]


def test_one_recording_at_a_time() -> None:
    spans.start()
    with pytest.raises(AssertionError, match="recorded already"):
        spans.start()
