"""Where the figures of a run go: its files first, then the mirror and the terminal."""

from pathlib import Path
from typing import Any

from dsv3.config.root import RunConfig
from dsv3.redaction import redact
from dsv3.runs.directory import RunDirectory
from dsv3.runs.records import EventLog, MetricsLog
from dsv3.train.alarms import Alarm
from dsv3.train.console import open_console
from dsv3.train.tracking import open_mirror

Record = dict[str, Any]

PATIENCE = 10_000
"""Lines that wait in memory while the disk is full: a few dozen MB."""


class Reports:
    """What training tells, and here nobody hears: for every rank but the first.

    The figures of all ranks are the same.
    """

    def step(self, record: Record) -> None:
        """Take the line of an optimizer step."""

    def evaluation(self, record: Record) -> None:
        """Take the line of an evaluation."""

    def digests(self, record: Record) -> None:
        """Take a line of digests."""

    def alarm(self, alarm: Alarm) -> None:
        """Take an alarm."""

    def event(self, name: str, **fields: Any) -> None:
        """Take an event."""

    def note(self, text: str) -> None:
        """Show a line to whoever watches."""

    def roll_back(self, to_step: int) -> None:
        """Forget the lines of the steps after `to_step`: these will be done again."""

    def sync(self) -> None:
        """Have all lines so far on the disk."""

    def close(self) -> None:
        """Flush and let go."""


class Reporter(Reports):
    """Writes metrics.jsonl, events.jsonl and, where asked for, digests.jsonl.

    Mirrors and presenters swallow their own failures.
    Open it under the run's lock, once the step to go on from is known: lines beyond `done_steps`
    are cut before anything new is written.
    """

    def __init__(
        self, run: RunDirectory, config: RunConfig, *, done_steps: int, quiet: bool
    ) -> None:
        self._total_steps = config.schedule.num_steps
        self._metrics = self._log_of_steps(run.metrics_path, done_steps)
        self._digests: MetricsLog | None = None
        if config.run.digests:
            self._digests = self._log_of_steps(run.digests_path, done_steps)
        self._events = EventLog(run.events_path, patience=PATIENCE)
        self._presenter = open_console(
            total_steps=self._total_steps, done_steps=done_steps, quiet=quiet
        )
        self._mirror = open_mirror(config, run=run, first_step=done_steps + 1, warn=self._warn)

    def step(self, record: Record) -> None:
        """Take the line of an optimizer step."""
        self._metrics.append(record)
        self._mirror.log(record["step"], record)
        self._presenter.step(
            record["step"], loss=record["loss"], tokens_per_second=record["tokens_per_second"]
        )

    def evaluation(self, record: Record) -> None:
        """Take the line of an evaluation."""
        self._metrics.append(record)
        self._mirror.log(record["step"], record)
        self.note(
            f"step {record['step']}: validation loss {record['loss']:.4f} nats per token,"
            f" {record['bpb']:.4f} bits per byte"
        )

    def digests(self, record: Record) -> None:
        """Take a line of digests; only with `run.digests`."""
        assert self._digests is not None, "run.digests is off"
        self._digests.append(record)

    def event(self, name: str, **fields: Any) -> None:
        """Take an event."""
        self._events.event(name, **fields)

    def alarm(self, alarm: Alarm) -> None:
        """Take the begin or the end of an alarm; only the begin is shown."""
        self.event(alarm.event, **alarm.details())
        if alarm.begins:
            self.note(str(alarm))

    def roll_back(self, to_step: int) -> None:
        """Cut the lines of the steps after `to_step`; events keep what they have."""
        self._mirror.roll_back(to_step)
        for log in self._logs_of_steps():
            log.close()
        self._metrics = self._log_of_steps(self._metrics.path, to_step)
        if self._digests is not None:
            self._digests = self._log_of_steps(self._digests.path, to_step)

    def sync(self) -> None:
        """Have all lines so far on the disk; before a checkpoint, which counts on them.

        Raises CapacityError if they are not. A thread that saves may call it.
        """
        for log in self._logs_of_steps():
            log.sync()

    def note(self, text: str) -> None:
        """Show a line to whoever watches."""
        self._presenter.note(redact(text))

    def close(self) -> None:
        """Flush and let go; the mirror gets a little time to catch up."""
        self._presenter.close()
        report = self._mirror.close()
        if not report.complete:
            self.event("mirror_incomplete", lost=report.lost, failed=report.failed)
        for log in (*self._logs_of_steps(), self._events):
            log.close()

    def _log_of_steps(self, path: Path, last_step: int) -> MetricsLog:
        ended = last_step == self._total_steps
        return MetricsLog(path, last_step=last_step, ended=ended, patience=PATIENCE)

    def _logs_of_steps(self) -> list[MetricsLog]:
        return [self._metrics] if self._digests is None else [self._metrics, self._digests]

    def _warn(self, text: str) -> None:
        self._events.event("mirror_warning", text=text)
        self.note(text)
