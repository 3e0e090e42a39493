"""Mirrors of metrics.jsonl for people who watch dashboards (`tracking=wandb`, `tensorboard`).

The files of a run are the truth. A mirror is a process of its own, fed by a daemon thread from a
bounded queue that drops: whether it is slow, hangs or fails, the loop neither waits nor ends.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsv3.config.root import RunConfig
from dsv3.config.tracking import TrackingConfig
from dsv3.errors import Dsv3Error
from dsv3.redaction import redact, redact_data, without_secrets
from dsv3.runs.directory import RunDirectory
from dsv3.train.mirror import Report
from dsv3.train.mirrored import MirroredRun

_QUEUE_LINES = 1024
_CLOSE_S = 15.0
_SECRETS_OF = {"wandb": ("WANDB_API_KEY",)}
_COMMAND = (sys.executable, "-P", "-m", "dsv3.train.mirror")


@dataclass(frozen=True)
class MirrorReport:
    """How a mirror did, in lines; `finished`: it ended by itself."""

    written: int
    failed: int
    lost: int
    finished: bool

    @property
    def complete(self) -> bool:
        """Whether every line arrived."""
        return self.finished and self.failed == 0 and self.lost == 0


class Mirror:
    """Feeds the process of a mirror.

    `warn` is called at most once, and only inside `log` or `close`, on the thread of the caller.
    """

    def __init__(
        self,
        run: MirroredRun,
        *,
        every_steps: int,
        warn: Callable[[str], None],
        command: Sequence[str] = _COMMAND,
        capacity: int = _QUEUE_LINES,
    ) -> None:
        self._run = run
        self._every_steps = every_steps
        self._warn = warn
        self._command = list(command)
        self._queue: queue.Queue[str | None] = queue.Queue(capacity)
        self._given = 0
        self._report: Report | None = None
        self._warning: str | None = None
        self._warned = False
        self._abandoned = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._feed, name="mirror", daemon=True)
        self._thread.start()

    def log(self, step: int, line: Mapping[str, Any]) -> None:
        """Hand the numbers of `line` over if this is a mirrored step; never waits."""
        self._pass_warning_on()
        if step % self._every_steps != 0 and line.get("kind") != "eval":
            return
        self._given += 1
        text = json.dumps({"step": step, "values": dict(numbers(line))})
        with contextlib.suppress(queue.Full):  # counted as lost in the report
            self._queue.put_nowait(text)

    def roll_back(self, to_step: int) -> None:
        """Say that the steps after `to_step` will be done again; never waits."""
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(json.dumps({"roll_back": to_step}))

    def close(self, timeout_s: float = _CLOSE_S) -> MirrorReport:
        """Give the mirror `timeout_s` to write what it has, then end it."""
        deadline_s = time.monotonic() + timeout_s
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout_s)
        self._thread.join(max(0.0, deadline_s - time.monotonic()))
        finished = not self._thread.is_alive()
        if not finished:
            self._note(f"tracking did not finish within {timeout_s:g} s and was left behind")
            self._abandon()
        self._pass_warning_on()
        done = self._report if self._report is not None else Report()
        lost = self._given - done.written - done.failed
        return MirrorReport(done.written, done.failed, lost, finished and lost == 0)

    def _feed(self) -> None:
        try:
            self._process = process = self._start()
            text = self._converse(process)
            self._report = Report(**json.loads(text))
        except (OSError, ValueError, TypeError) as error:
            self._note(f"tracking is off: {type(error).__name__}: {error}")
        else:
            if self._report.warning is not None:
                self._note(self._report.warning)

    def _start(self) -> "subprocess.Popen[str]":
        log = Path(self._run.directory) / "logs" / "mirror.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("w") as errors:
            return subprocess.Popen(  # noqa: S603 - our own words, no shell
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=without_secrets(os.environ, kept=_SECRETS_OF.get(self._run.backend, ())),
                start_new_session=True,  # Ctrl-C is for the rank
            )

    def _converse(self, process: "subprocess.Popen[str]") -> str:
        assert process.stdin is not None, f"{process.args=}"
        assert process.stdout is not None, f"{process.args=}"
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(json.dumps(asdict(self._run)) + "\n")
            while (text := self._queue.get()) is not None and not self._abandoned.is_set():
                pipe.write(text + "\n")
                pipe.flush()
        return process.stdout.read()

    def _abandon(self) -> None:
        self._abandoned.set()
        if self._process is not None:
            self._process.kill()
        self._thread.join(1.0)

    def _note(self, text: str) -> None:
        if self._warning is None:
            self._warning = redact(text)

    def _pass_warning_on(self) -> None:
        if self._warning is not None and not self._warned:
            self._warned = True
            self._warn(self._warning)


class NoMirror:
    """`tracking=none`."""

    def log(self, step: int, line: Mapping[str, Any]) -> None:
        """Do nothing."""

    def roll_back(self, to_step: int) -> None:
        """Do nothing."""

    def close(self, timeout_s: float = 0.0) -> MirrorReport:
        """Nothing was given, nothing is missing."""
        return MirrorReport(0, 0, 0, finished=True)


def open_mirror(
    config: RunConfig,
    *,
    run: RunDirectory,
    first_step: int,
    warn: Callable[[str], None],
) -> Mirror | NoMirror:
    """The mirror `config.tracking` asks for; returns at once and comes up in the background.

    `first_step` is the next step to be done; of `config` every key goes to the dashboard and of the
    environment nothing.
    """
    tracking = config.tracking
    if tracking.backend == "none":
        return NoMirror()
    filed = filed_as(run, tracking)
    mirrored = MirroredRun(
        backend=tracking.backend,
        id=run.id,
        directory=str(run.path.absolute()),
        project=filed.project,
        group=filed.group if filed.group is not None else config.model.name,
        name=filed.name if filed.name is not None else run.id,
        tags=filed.tags or (config.model.name, config.balance.strategy),
        mode=tracking.mode,
        first_step=first_step,
        config=redact_data(config.model_dump(mode="json")),
    )
    return Mirror(mirrored, every_steps=tracking.every_steps, warn=warn)


def filed_as(run: RunDirectory, tracking: TrackingConfig) -> TrackingConfig:
    """The section of the first attempt that had a mirror; `tracking` if none had.

    A run goes on under the project, group and name that it has there, whoever asks for it: two
    sweeps that share it would otherwise take it from each other.
    """
    with contextlib.suppress(Dsv3Error):  # what is damaged is told by those who need it
        for attempt in run.attempts():
            before = run.config(attempt.get("config", run.config_path.name)).tracking
            if before.backend != "none":
                return before
    return tracking


def numbers(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a metrics line, nested ones as `outer/inner`; an evaluation's under `eval`."""
    if line.get("kind") == "eval":
        prefix = f"{prefix}eval/"
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
            yield f"{prefix}{name}", value
