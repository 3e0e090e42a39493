"""What a job does once per start, beside its ranks: `python -m dsv3.launch.slurm.job VERB ...`.

`begin SUBMISSION INDEX` says whether there is anything to train; `end SUBMISSION INDEX CODE` judges
how the ranks ended, and whether the job is to be requeued.
"""

import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dsv3.errors import (
    CapacityError,
    Dsv3Error,
    InterruptedError_,
    LockHeldError,
    Problem,
    RankLostError,
    SavedForRequeueError,
)
from dsv3.files import refused
from dsv3.launch.slurm.endings import read_endings, start_directory
from dsv3.launch.slurm.script import NO_MASTER, NOTHING_TO_DO
from dsv3.launch.submission import Submission, place_of
from dsv3.launch.verdict import cause_of, conclude
from dsv3.runs.directory import RunDirectory
from dsv3.runs.files import write_json
from dsv3.runs.records import EventLog, read_lines

REQUEUE = SavedForRequeueError.exit_code
# Asked for again, these may go better; a configuration, a checkpoint, data or numbers would not.
_MAY_PASS = (SavedForRequeueError, RankLostError, LockHeldError)


def main(argv: Sequence[str] | None = None) -> int:
    """Begin or end a start of a job; returns the exit code for its script."""
    verb, submission, index, *rest = sys.argv[1:] if argv is None else argv
    try:
        start = Start(Submission(Path(submission)), int(index))
        return start.begin() if verb == "begin" else start.end(int(rest[0]))
    except (Dsv3Error, OSError) as error:
        named = error if isinstance(error, Dsv3Error) else refused(error) or Dsv3Error(str(error))
        _print(*named.lines())
        return named.exit_code


class Start:
    """One start of a job: a requeue makes another one of the same job."""

    def __init__(self, submission: Submission, index: int) -> None:
        self._submission = submission
        self._index = index
        self._intent = submission.intent()
        self._run = RunDirectory(self._intent.runs[index].directory)
        self._of_job = submission.of_job(index)
        self._job = os.environ.get("SLURM_JOB_ID", "?")

    def begin(self) -> int:
        """0 if the run is to be trained, NOTHING_TO_DO if not, else how it failed."""
        nothing = self._nothing_to_do()
        if nothing is not None:
            _print(f"dsv3: {self._run.path}: {nothing}; nothing is started")
            return NOTHING_TO_DO
        if self._fruitless_starts() >= self._intent.fruitless_starts:
            return self._give_up([])
        (self._of_job / "ended.json").unlink(missing_ok=True)
        record = {"job": self._job, "host": socket.gethostname(), **_nodes(), "at": _now()}
        write_json(self._of_job / "begun.json", record, writer="begin")
        with EventLog(self._run.events_path) as events:
            events.event("job_started", array=self._submission.key, **record)
        _print(f"dsv3: {self._run.path}: {' '.join(f'{k}={v}' for k, v in record.items())}")
        return 0

    def end(self, code: int) -> int:
        """REQUEUE if the job is to be requeued, else its exit code; `code` is srun's."""
        if self._run.done_path.exists():
            self._write(0, [], requeue=False)
            return 0
        error = self._judge(code)
        may_pass, cancelled = (
            isinstance(error, _MAY_PASS),
            self._submission.is_cancelled(self._index),
        )
        requeue = may_pass and not cancelled
        if requeue and self._fruitless_starts() >= self._intent.fruitless_starts:
            return self._give_up([error])
        problems = list(map(str, error.problems))
        self._write(error.exit_code, problems, requeue=requeue)
        if requeue:
            return REQUEUE
        wanted = (cancelled and may_pass) or isinstance(error, InterruptedError_)
        return 0 if wanted else error.exit_code

    def _nothing_to_do(self) -> str | None:
        """Why this job has nothing to do, if it has not."""
        if self._run.done_path.exists():
            return "it is done"
        place = place_of(self._run)
        if place is None or (place.key, place.index) != (self._submission.key, self._index):
            other = "no other job" if place is None else f"the jobs of {place.key}"
            return f"it is not this job's any more, but of {other}"
        if self._submission.is_cancelled(self._index):
            return "it was cancelled"
        owner = self._claim()
        return None if owner is None else f"job {owner} has it already"

    def _claim(self) -> str | None:
        """Take the run for this array, for good; the array that was quicker, if one was."""
        mine = os.environ.get("SLURM_ARRAY_JOB_ID", self._job)
        path = self._of_job / "claim"
        try:
            with path.open("x", encoding="ascii") as file:
                file.write(mine)
        except FileExistsError:
            owner = path.read_text(encoding="ascii")
            return None if owner == mine else owner or "unknown"
        return None

    def _judge(self, code: int) -> Dsv3Error:
        """What ended the ranks, said and written down as a local launcher does."""
        said = self._submission.output(self._index)
        if code == NO_MASTER:
            nodes = os.environ.get("SLURM_JOB_NODELIST", "")
            rule = f"scontrol names no host for SLURM_JOB_NODELIST={nodes}: the ranks cannot meet"
            error: Dsv3Error = CapacityError(Problem("MASTER_ADDR", rule, f"its output: {said}"))
            _print(*error.lines())
            return error
        ending = read_endings(start_directory(self._of_job))
        try:
            conclude(self._run, ending)
        except RankLostError as lost:
            _print(*lost.lines())
            return lost
        cause = cause_of(ending)
        if cause is not None and cause.failure is not None:
            return cause.failure.error
        rule = f"no rank said why it ended; srun ended with exit code {code}; its output: {said}"
        error = RankLostError(Problem(str(self._run.path), rule))
        _print(*error.lines())
        return error

    def _fruitless_starts(self) -> int:
        """Starts of this array's job since the run's last new checkpoint, this one included."""
        count = 0
        for line in read_lines(self._run.events_path):
            if line["event"] == "checkpoint":
                count = 0
            elif line["event"] == "job_started" and line.get("array") == self._submission.key:
                count += 1
        return count

    def _give_up(self, errors: list[Dsv3Error]) -> int:
        last = [problem for error in errors for problem in error.problems]
        rule = f"was started {self._intent.fruitless_starts} times without a new checkpoint"
        remedy = f"its output: {self._submission.output(self._index)}; --retry tries it again"
        error = RankLostError([Problem(str(self._run.path), rule, remedy), *last])
        _print(*error.lines())
        self._run.mark_failed(error)
        self._write(error.exit_code, list(map(str, error.problems)), requeue=False)
        return error.exit_code

    def _write(self, code: int, problems: list[str], *, requeue: bool) -> None:
        record: dict[str, Any] = {"job": self._job, "exit_code": code, "problems": problems}
        record |= {"requeue": requeue, "at": _now()}
        # The job ends as it should, too, where the disk is full.
        with contextlib.suppress(CapacityError), EventLog(self._run.events_path) as events:
            events.event("job_ended", array=self._submission.key, **record)
        with contextlib.suppress(CapacityError):
            write_json(self._of_job / "ended.json", record, writer="end")


def _nodes() -> dict[str, str]:
    names = {"restart": "SLURM_RESTART_COUNT", "nodes": "SLURM_JOB_NODELIST"}
    return {key: os.environ.get(name, "0") for key, name in names.items()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _print(*lines: str) -> None:
    with contextlib.suppress(OSError):
        sys.stdout.writelines(f"{line}\n" for line in lines)
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
