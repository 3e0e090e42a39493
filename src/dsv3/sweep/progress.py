"""Where the runs of a sweep stand, from their files and locks alone."""

import json
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dsv3.errors import Dsv3Error
from dsv3.runs.directory import RunDirectory, Status
from dsv3.sweep.record import SweepRecord

MISSING, DAMAGED = "missing", "damaged"
_CHUNK_BYTES = 1 << 16
_RECENT_STEPS = 20
_MOST_LINES = 1000


@dataclass(frozen=True)
class Progress:
    """How far a run is; `status` is a `Status`, or `missing` or `damaged`.

    `loss` is that of the last step, `validation_loss` of the last evaluation, in nats per token.
    `seconds_left` by the speed of the last steps, for a run that is training. None: not known yet.
    `job` is what a cluster says of a run that was handed in.
    """

    id: str
    arm: str
    seed: int
    directory: Path
    status: str
    step: int = 0
    total_steps: int | None = None
    loss: float | None = None
    validation_loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    failure: str | None = None
    job: str | None = None

    def record(self) -> dict[str, Any]:
        """This as plain data, for --json."""
        return {**vars(self), "directory": str(self.directory)}


class Gauge:
    """Reads how far one run is, again and again; what is frozen it reads once.

    An empty `arm`: the run is asked about by itself, and its tag tells it from others.
    """

    def __init__(self, run: RunDirectory, *, arm: str = "", seed: int | None = None) -> None:
        self.run = run
        self._arm = arm
        self._seed = seed
        self._total: tuple[int, int] | None = None  # steps, tokens

    def read(self) -> Progress:
        """Look at the files; never raises because of what is in them."""
        if not self.run.exists():
            return self._progress(MISSING)
        try:
            status, failure = self.run.status(), None
            if self._total is None:
                config = self.run.config()
                self._seed = config.seed
                self._total = config.schedule.num_steps, config.schedule.total_tokens
            if status is Status.FAILED and (said := self.run.failure()) is not None:
                failure = str(said["problems"][0]["rule"]) if said["problems"] else said["id"]
        except (Dsv3Error, KeyError, TypeError) as error:
            return self._progress(DAMAGED, failure=str(error))
        steps, evaluation = _newest(self.run.metrics_path)
        last = steps[-1] if steps else {}
        return self._progress(
            str(status),
            step=int(last.get("step", 0)),
            total_steps=self._total[0],
            loss=last.get("loss"),
            validation_loss=evaluation.get("loss"),
            failure=failure,
            **(self._speed(steps) if status is Status.RUNNING else {}),
        )

    def _speed(self, steps: Sequence[dict[str, Any]]) -> dict[str, float]:
        speeds = [line["tokens_per_second"] for line in steps if line.get("tokens_per_second")]
        if not speeds or self._total is None:
            return {}
        speed = statistics.median(speeds)
        left = max(0, self._total[1] - int(steps[-1].get("tokens", 0)))
        return {"tokens_per_second": speeds[-1], "seconds_left": left / speed}

    def _progress(self, status: str, **figures: Any) -> Progress:
        seed = -1 if self._seed is None else self._seed
        return Progress(self.run.id, self._arm, seed, self.run.path, status, **figures)


def gauges(record: SweepRecord) -> list[Gauge]:
    """A gauge for each run of a sweep, in the order of its record."""
    return [Gauge(record.directory(run), arm=run.arm, seed=run.seed) for run in record.runs]


def _newest(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The last lines of steps, in order, and the last evaluation; only the end of it is read."""
    steps: list[dict[str, Any]] = []
    evaluation: dict[str, Any] = {}
    for line in islice(_backwards(path), _MOST_LINES):
        if line.get("kind") == "eval":
            evaluation = evaluation or line
        elif "kind" not in line and "step" in line and len(steps) < _RECENT_STEPS:
            steps.append(line)
        if evaluation and len(steps) == _RECENT_STEPS:
            break
    return steps[::-1], evaluation


def _backwards(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a log that may be written or cut meanwhile, the last one first."""
    try:
        with path.open("rb") as file:
            end, rest = file.seek(0, os.SEEK_END), b""
            while end > 0:
                begin = max(0, end - _CHUNK_BYTES)
                file.seek(begin)
                *lines, tail = ((file.read(end - begin)) + rest).split(b"\n")
                del tail  # torn, or empty; whole lines end with a newline
                if begin > 0:
                    rest, lines = (lines[0] if lines else b"") + b"\n", lines[1:]
                end = begin
                for data in reversed(lines):
                    if (line := _parsed(data)) is not None:
                        yield line
    except OSError:
        return


def _parsed(data: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(data)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None
