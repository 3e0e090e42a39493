"""When the attempts of a run trained, from what they wrote down themselves."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from dsv3.report.study import Ending, Spell

Event = Mapping[str, Any]

# The first of these ends an attempt; `job_ended` comes from the script beside ranks that are gone.
ENDINGS: dict[str, Ending] = {
    "stopped": "stopped",
    "failed": "failed",
    "rank_lost": "lost",
    "job_ended": "lost",
}
NEXT_BEGINS = ("started", "job_started")


def spells(
    events: Sequence[Event],
    steps: Sequence[Mapping[str, Any]],
    *,
    finished_at: str | None,
    running: bool,
) -> tuple[Spell, ...]:
    """The attempts that began to train; `steps` are the lines of metrics that count.

    The last attempt of a finished run ends with its result. One that nothing ended, ends with its
    last event, the last of all where its last step was done if that is later: lines of steps have
    no time of day, but a duration. Raises KeyError or ValueError if an event lacks what it has to
    have.
    """
    attempts = list(_attempts(events))
    found = []
    for number, (started, during) in enumerate(attempts, start=1):
        begin, is_last = _time(started), number == len(attempts)
        ended = next((event for event in during if event["event"] in ENDINGS), None)
        if is_last and finished_at is not None:
            end, ending = datetime.fromisoformat(finished_at), "finished"
        elif ended is not None:
            end, ending = _time(ended), ENDINGS[ended["event"]]
        else:
            signs = [begin, *map(_time, during)]
            if is_last:
                signs.append(begin + _duration(steps, after=started["step"]))
            end, ending = max(signs), "running" if is_last and running else "lost"
        attempt = int(started.get("attempt", number))
        found.append(Spell(attempt, begin, max(begin, end), ending))  # type: ignore[arg-type]
    return tuple(found)


def _attempts(events: Sequence[Event]) -> Iterator[tuple[Event, list[Event]]]:
    """Each `started` with the events of its attempt."""
    at = 0
    while at < len(events):
        if events[at]["event"] != "started":
            at += 1
            continue
        end = at + 1
        while end < len(events) and events[end]["event"] not in NEXT_BEGINS:
            end += 1
        yield events[at], list(events[at + 1 : end])
        at = end


def _time(event: Event) -> datetime:
    return datetime.fromisoformat(event["time"])


def _duration(steps: Sequence[Mapping[str, Any]], *, after: int) -> timedelta:
    """Of the steps after `after`, as far as they say how fast they were."""
    seconds, before = 0.0, 0
    for line in steps:
        speed = line.get("tokens_per_second")
        if line["step"] > after and speed:
            seconds += (line["tokens"] - before) / speed
        before = line["tokens"]
    return timedelta(seconds=seconds)
