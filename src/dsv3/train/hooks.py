"""What listens to a run: the loop calls these and knows nothing of files, mirrors or terminals."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dsv3.runs.records import EventLog, MetricsLog

Record = dict[str, Any]


class Hook(Protocol):
    """A listener. An exception from one ends the run, so mirrors must swallow their own."""

    def on_record(self, record: Record) -> None:
        """Take one line of metrics.jsonl: a step, or an evaluation (`kind: "eval"`)."""
        ...

    def on_event(self, name: str, fields: Mapping[str, Any]) -> None:
        """Take one event."""
        ...

    def close(self) -> None:
        """Flush and let go."""
        ...


class Files:
    """metrics.jsonl and events.jsonl: the truth that mirrors mirror."""

    def __init__(self, metrics: MetricsLog, events: EventLog) -> None:
        self._metrics = metrics
        self._events = events

    def on_record(self, record: Record) -> None:
        """Append the line."""
        self._metrics.append(record)

    def on_event(self, name: str, fields: Mapping[str, Any]) -> None:
        """Append the event with the time of day; a checkpoint counts on the lines before it."""
        self._metrics.sync()
        self._events.event(name, **fields)

    def close(self) -> None:
        """Close both files."""
        self._metrics.close()
        self._events.close()


class Hooks:
    """All listeners, called in order: the files first, then whatever mirrors them."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self._hooks = tuple(hooks)

    def on_record(self, record: Record) -> None:
        """Hand one line of metrics.jsonl to every listener."""
        for hook in self._hooks:
            hook.on_record(record)

    def on_event(self, name: str, **fields: Any) -> None:
        """Hand one event to every listener."""
        for hook in self._hooks:
            hook.on_event(name, fields)

    def close(self) -> None:
        """Close every listener, the last one first."""
        for hook in reversed(self._hooks):
            hook.close()
