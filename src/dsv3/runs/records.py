"""`metrics.jsonl` and `events.jsonl`: one JSON object per line, each line whole or not there."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from dsv3.errors import CapacityError, Problem
from dsv3.files import storage_error
from dsv3.runs.files import damaged

_TAIL_BYTES = 1 << 20
_REMEDY = "free some space and ask for the same run again: it goes on from its last checkpoint"


class LineLog:
    """Appends JSON lines to a file; opening it drops the torn line a crash may have left."""

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._descriptor = os.open(path, flags, 0o644)
        except OSError as error:
            raise storage_error(path, error, "make the run directory writable") from error
        self._drop_torn_line()

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line at once, unbuffered; numbers that are not finite become null.

        Raises CapacityError if it does not fit; the file then ends with the line before.
        """
        data = (json.dumps(_finite(line), allow_nan=False) + "\n").encode()
        end = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, data)
        except OSError as error:
            raise storage_error(self.path, error, _REMEDY) from error
        if written < len(data):
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, end)
            raise CapacityError(Problem(str(self.path), "a line did not fit on the disk", _REMEDY))

    def sync(self) -> None:
        """Make all lines survive a power cut; call before a checkpoint that counts on them."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise storage_error(self.path, error, _REMEDY) from error

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drop_torn_line(self) -> None:
        end = os.fstat(self._descriptor).st_size
        begin = end
        while begin > 0:
            begin = max(0, begin - _TAIL_BYTES)
            newline = os.pread(self._descriptor, end - begin, begin).rfind(b"\n")
            if newline >= 0:
                begin += newline + 1
                break
        if begin < end:
            os.ftruncate(self._descriptor, begin)


class MetricsLog(LineLog):
    """Lines of the steps and evaluations of a run, in order of steps.

    Open it under the run's lock, once the checkpoint to go on from is known: lines beyond
    `last_step` (0: a fresh start) belong to steps that will be done again and are cut before
    anything new is written. Write the lines of a step before its checkpoint. What a run says after
    its last checkpoint it says again: with `ended` lines of `last_step` that have a `kind` go too.
    """

    def __init__(self, path: Path, *, last_step: int, ended: bool = False) -> None:
        super().__init__(path)
        self.lines_cut = self._cut_after(last_step, ended=ended)

    def step(
        self,
        step: int,
        *,
        tokens: int,
        loss: float,
        lr: float,
        grad_norm: float,
        tokens_per_second: float,
        more: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Write the line of an optimizer step; `tokens` are those seen including it."""
        line = {
            "step": step,
            "tokens": tokens,
            "loss": loss,
            "lr": lr,
            "grad_norm": grad_norm,
            "tokens_per_second": tokens_per_second,
            **more,
        }
        self.append(line)
        return line

    def evaluation(
        self, step: int, *, tokens: int, loss: float, bpb: float, more: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write the line of an evaluation after `step`: nats per token, bits per byte."""
        line = {"kind": "eval", "step": step, "tokens": tokens, "loss": loss, "bpb": bpb, **more}
        self.append(line)
        return line

    def _cut_after(self, last_step: int, *, ended: bool) -> int:
        # Steps only rise, so what is to go is a tail: one truncation, atomic, needs no space.
        position = 0
        with self.path.open("rb") as file:
            for number, data in enumerate(file, start=1):
                line = _parse(self.path, number, data)
                kept = last_step - 1 if ended and "kind" in line else last_step
                if line.get("step", 0) > kept:
                    dropped = 1 + sum(1 for _ in file)
                    os.ftruncate(self._descriptor, position)
                    return dropped
                position += len(data)
        return 0


class EventLog(LineLog):
    """What happened to a run, over all its attempts; nothing is ever cut."""

    def event(self, name: str, **details: Any) -> None:
        """Write one event with the time of day."""
        self.append({"time": datetime.now(UTC).isoformat(), "event": name, **details})


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a log that may still be written: none if it is missing, a torn end is left out.

    Raises CheckpointError naming the line if another line is damaged.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for number, data in enumerate(file, start=1):
            if data.endswith(b"\n"):
                yield _parse(path, number, data)


def _parse(path: Path, number: int, data: bytes) -> dict[str, Any]:
    try:
        line = json.loads(data)
    except ValueError as error:
        raise damaged(path, f"line {number} is not JSON ({error})") from error
    if not isinstance(line, dict):
        raise damaged(path, f"line {number} is not a JSON object")
    return line


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
