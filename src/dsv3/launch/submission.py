"""What was handed in to a scheduler, on disk, and written before it is.

RUN_ROOT/.jobs/lock               held by the command that hands in
RUN_ROOT/.jobs/KEY/intent.json    the runs of one array, by their number in it
RUN_ROOT/.jobs/KEY/job.sh         its script
RUN_ROOT/.jobs/KEY/asked          the scheduler may have been asked: from now on there is doubt
RUN_ROOT/.jobs/KEY/job.json       the scheduler's answer
RUN_ROOT/.jobs/KEY/N.out          what job N of the array printed
RUN_ROOT/.jobs/KEY/N/             what job N wrote of its starts: begun.json, ended.json, ...
RUN_DIR/job.json                  which array, and which number in it, a run belongs to now

A run belongs to the array that its job.json names and to no other: a job of an older one, however
late it starts, finds that out and ends.
"""

import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dsv3 import files
from dsv3.errors import Problem
from dsv3.files import new_directory, storage_error, write_synced
from dsv3.launch.scheduler import SchedulerError
from dsv3.runs.directory import RunDirectory
from dsv3.runs.files import damaged, read_json, write_json

KEY_DIGITS = 12
JOBS = ".jobs"
POINTER = "job.json"
FORMAT = 1


class PlannedRun(BaseModel):
    """One run of an array: its directory (absolute), and the configuration file in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    directory: Path
    config: str


class Intent(BaseModel):
    """What an array is to train; `launcher` is the kind of launcher that asks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    key: str = Field(pattern=r"^[0-9a-f]{12}$")
    launcher: str
    profile: str
    created_at: str
    fruitless_starts: int
    runs: tuple[PlannedRun, ...]


@dataclass(frozen=True)
class Place:
    """A run's place: the array's directory, its key, and the number of the run in it."""

    submission: Path
    key: str
    index: int


def new_key() -> str:
    """A key no array has."""
    return uuid.uuid4().hex[:KEY_DIGITS]


def jobs_root(run: RunDirectory) -> Path:
    """Where the arrays of runs beside this one are written down."""
    return run.path.absolute().parent / JOBS


class Submission:
    """The directory of one array."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.key = path.name
        self.script = path / "job.sh"
        self._intent_path = path / "intent.json"
        self._asked_path = path / "asked"
        self._answer_path = path / "job.json"

    @classmethod
    def create(cls, root: Path, intent: Intent, script: str) -> "Submission":
        """Write an array down, whole and synced, then tell its runs; raises CapacityError.

        For the only command that hands in runs of `root`: what a killed one left half made goes.
        """
        submission = cls(root / intent.key)
        text = intent.model_dump_json(indent=2).encode()
        try:
            root.mkdir(exist_ok=True)
            for half_made in root.glob(".*"):
                shutil.rmtree(half_made, ignore_errors=True)
            temporary = root / f".{intent.key}"
            with new_directory(submission.path, temporary):
                for number in range(len(intent.runs)):
                    (temporary / str(number)).mkdir()
                write_synced(temporary / "intent.json", [text, b"\n"])
                write_synced(temporary / "job.sh", [script.encode()])
            files.sync_directory(root)
        except OSError as error:
            remedy = "free some space there, or make it writable; nothing was handed in"
            raise storage_error(submission.path, error, remedy) from error
        for number, run in enumerate(intent.runs):
            point_at(RunDirectory(run.directory), Place(submission.path, intent.key, number))
        return submission

    def intent(self) -> Intent:
        """What it is to train; raises CheckpointError if its file is damaged."""
        try:
            return Intent.model_validate_json(self._intent_path.read_bytes())
        except (OSError, ValidationError) as error:
            raise damaged(self._intent_path, str(error).splitlines()[0]) from error

    def mark_asked(self) -> None:
        """From here on the scheduler may have it; on the disk before it is asked."""
        try:
            files.write_atomically(self._asked_path, b"", writer="asking")
        except OSError as error:
            remedy = "free some space there; nothing was handed in"
            raise storage_error(self._asked_path, error, remedy) from error

    def mark_refused(self) -> None:
        """The scheduler has it for certain not: no doubt is left."""
        self._asked_path.unlink(missing_ok=True)

    def asked_ago_s(self) -> float | None:
        """Seconds since the scheduler was asked first; None if it never was."""
        try:
            return max(0.0, time.time() - self._asked_path.stat().st_mtime)
        except FileNotFoundError:
            return None

    def mark_taken(self, array: str) -> None:
        """Write down the scheduler's own name of the array."""
        write_json(self._answer_path, {"array": array}, writer="answer")

    def array(self) -> str | None:
        """The scheduler's name of the array, if it has told."""
        try:
            return str(read_json(self._answer_path)["array"])
        except KeyError:
            return None
        except Exception:  # noqa: BLE001 - damaged or not there: its key finds it all the same
            return None

    def of_job(self, index: int) -> Path:
        """Where job `index` writes of itself."""
        return self.path / str(index)

    def output(self, index: int) -> Path:
        """What job `index` printed."""
        return self.path / f"{index}.out"

    def has_begun(self, index: int) -> bool:
        """Whether job `index` ever started, and so was taken for certain."""
        return (self.of_job(index) / "begun.json").exists()

    def ending(self, index: int) -> dict[str, Any] | None:
        """How job `index` ended the last time; None if it has not."""
        path = self.of_job(index) / "ended.json"
        return read_json(path) if path.exists() else None

    def mark_cancelled(self, index: int) -> None:
        """Job `index` is to end for good once it has saved."""
        write_json(self.of_job(index) / "cancelled.json", {"cancelled": True}, writer="cancel")

    def is_cancelled(self, index: int) -> bool:
        """Whether somebody wanted job `index` to end for good."""
        return (self.of_job(index) / "cancelled.json").exists()


def point_at(run: RunDirectory, place: Place) -> None:
    """Give a run to an array; from now on no other one trains it."""
    record = {"submission": str(place.submission), "key": place.key, "index": place.index}
    write_json(run.path / POINTER, record, writer="place")


def place_of(run: RunDirectory) -> Place | None:
    """The array a run belongs to; None if it was never handed in.

    Found beside the run if it was moved with everything else. Raises CheckpointError if the file is
    damaged.
    """
    path = run.path / POINTER
    if not path.exists():
        return None
    record = read_json(path)
    try:
        key, index = str(record["key"]), int(record["index"])
        beside = jobs_root(run) / key
        there = Path(record["submission"])
        return Place(beside if beside.is_dir() else there, key, index)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"{error} is missing or wrong") from error


def refuse_unspeakable(paths: Sequence[Path]) -> None:
    """Raise SchedulerError for paths that cannot be written into JSON and a script."""
    for path in paths:
        text = str(path)
        if any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in text):
            rule = "holds control characters or bytes that are no text: a job cannot be told of it"
            raise SchedulerError(Problem(ascii(text), rule, "choose another run_root="))
