"""`metrics.jsonl` and `events.jsonl`: one JSON object per line, each line whole or not there."""

import contextlib
import errno
import json
import math
import os
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from dsv3.errors import CapacityError
from dsv3.files import storage_error
from dsv3.redaction import redact_data
from dsv3.runs.files import damaged

FULL = (errno.ENOSPC, errno.EDQUOT)
_TAIL_BYTES = 1 << 20
_REMEDY = "free some space and ask for the same run again: it goes on from its last checkpoint"


class LineLog:
    """Appends JSON lines to a file; opening it drops the torn line a crash may have left.

    While the disk is full up to `patience` lines wait in memory, in their order, for the next call:
    a full disk is no reason to end a training. Threads may share it.
    """

    def __init__(self, path: Path, *, patience: int = 0) -> None:
        self.path = path
        self._patience = patience
        self._waiting: list[bytes] = []
        self._lock = threading.Lock()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._descriptor = os.open(path, flags, 0o644)
        except OSError as error:
            raise storage_error(path, error, "make the run directory writable") from error
        self._drop_torn_line()

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line at once, unbuffered; numbers that are not finite become null.

        Raises CapacityError if it does not fit, nor wait; the file then ends with a whole line.
        """
        data = (json.dumps(_finite(line), allow_nan=False) + "\n").encode()
        with self._lock:
            self._waiting.append(data)
            try:
                self._write_waiting(self._patience)
            except CapacityError:
                self._waiting.pop()
                raise

    def sync(self) -> None:
        """Make all lines survive a power cut; call before a checkpoint that counts on them.

        Raises CapacityError if one of them still has no room.
        """
        with self._lock:
            self._write_waiting(0)
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                raise storage_error(self.path, error, _REMEDY) from error

    def _write_waiting(self, patience: int) -> None:
        while self._waiting:
            try:
                self._write(self._waiting[0])
            except OSError as error:
                if error.errno in FULL and len(self._waiting) <= patience:
                    return
                raise storage_error(self.path, error, _REMEDY) from error
            del self._waiting[0]

    def _write(self, data: bytes) -> None:
        end = os.fstat(self._descriptor).st_size
        if os.write(self._descriptor, data) < len(data):
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, end)
            raise OSError(errno.ENOSPC, "a line did not fit on the disk")

    def close(self) -> None:
        """Close the file; lines that still have no room are lost. A second call does nothing."""
        if self._descriptor >= 0:
            with contextlib.suppress(CapacityError), self._lock:
                self._write_waiting(0)
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

    def __init__(
        self, path: Path, *, last_step: int, ended: bool = False, patience: int = 0
    ) -> None:
        super().__init__(path, patience=patience)
        self.lines_cut = self._cut_after(last_step, ended=ended)

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
        """Write one event with the time of day; without secrets, whatever the details quote."""
        details = redact_data(details)
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
