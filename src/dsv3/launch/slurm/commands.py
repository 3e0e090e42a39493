"""Slurm through its commands: sbatch, squeue, scontrol, scancel, and sacct where it has books."""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from dsv3.errors import Problem
from dsv3.launch.scheduler import DoubtError, Job, SchedulerError, no_answer
from dsv3.launch.slurm.states import FORMAT, read_sacct, read_scontrol, read_squeue
from dsv3.launch.slurm.tools import Answer, ask

# What sbatch says when the controller has looked at the job and does not want it. Of anything else,
# time-outs and broken connections above all, the job may have been taken.
_REFUSED = re.compile(
    r"Batch job submission failed: (?!.*(tim|connect|contact|communicat|byte))", re.I
)
_REFUSED_BEFORE = re.compile(
    r"(unrecognized option|[Ii]nvalid|DOS line breaks|must be|[Nn]o partition)"
)
_TAKEN = re.compile(r"(\d+)(;\S+)?")
_UNKNOWN = "Invalid job id specified"


@dataclass(frozen=True)
class Slurm:
    """The cluster that this machine's Slurm commands talk to; times in seconds."""

    name: str = "Slurm"
    submit_s: float = 60
    ask_s: float = 30

    def submit(self, script: Path, key: str) -> str:
        """Hand in the array with sbatch, from its directory: there its output goes."""
        del key  # it is in the script
        answer = ask(
            ["sbatch", "--parsable", script.name], seconds=self.submit_s, directory=script.parent
        )
        lines = answer.out.split()
        taken = _TAKEN.fullmatch(lines[-1]) if lines else None
        if answer.code == 0 and taken:
            return taken[1]
        problem = Problem(
            "sbatch", answer.said, "see `dsv3 doctor`, and `--dry-run` for the script"
        )
        if answer.code not in (None, 0) and _is_refusal(answer.err):
            raise SchedulerError(problem)
        raise DoubtError(problem)

    def jobs(self, keys: Collection[str]) -> list[Job]:
        """From squeue, or from scontrol where squeue does not answer."""
        if not keys:
            return []
        queue = ["squeue", f"--user={os.getuid()}", "--array", "--states=all", f"--format={FORMAT}"]
        answer = ask(queue, seconds=self.ask_s)
        found = read_squeue(answer.out, keys) if answer.code == 0 else None
        if found is None:
            other = ask(["scontrol", "show", "job", "--oneliner"], seconds=self.ask_s)
            found = read_scontrol(other.out, keys) if other.code == 0 and other.out else None
        if found is None:
            raise SchedulerError(no_answer(self.name, "squeue", _why(answer)))
        return found

    def past(self, keys: Collection[str]) -> list[Job]:
        """From sacct."""
        fields = "--format=JobID,State,JobName%200,Comment%200"
        books = ["sacct", "--allocations", "--noheader", "--parsable2", "--starttime=now-30days"]
        try:
            answer = ask([*books, f"--user={os.getuid()}", fields], seconds=self.ask_s)
        except SchedulerError:
            return []
        return read_sacct(answer.out, keys) if answer.code == 0 else []

    def knows(self, array: str) -> bool:
        """From scontrol, which says so if an id is unknown."""
        answer = ask(["scontrol", "show", "job", "--oneliner", array], seconds=self.ask_s)
        if answer.code == 0 and f"JobId={array}" in answer.out:  # ArrayJobId ends so, too
            return True
        if answer.code not in (None, 0) and _UNKNOWN in answer.err:
            return False
        raise SchedulerError(no_answer(self.name, f"scontrol show job {array}", _why(answer)))

    def verdict(self, script: Path) -> str:
        """From `sbatch --test-only`."""
        command = ["sbatch", "--test-only", script.name]
        answer = ask(command, seconds=self.submit_s, directory=script.parent)
        if answer.code != 0:
            raise SchedulerError(Problem("sbatch --test-only", answer.said, "see `dsv3 doctor`"))
        return answer.said.removeprefix("sbatch: ")

    def cancel(self, ids: Collection[str]) -> None:
        """With scancel."""
        self._scancel([], ids)

    def ask_to_save(self, ids: Collection[str]) -> None:
        """With scancel, which sends a signal to the ranks and not to the script that waits."""
        self._scancel(["--signal=USR1"], ids)

    def _scancel(self, options: list[str], ids: Collection[str]) -> None:
        if not ids:
            return
        answer = ask(["scancel", *options, *sorted(ids)], seconds=self.ask_s)
        if answer.code != 0 and _UNKNOWN not in answer.err:
            raise SchedulerError(no_answer(self.name, "scancel", _why(answer)))


def _is_refusal(error: str) -> bool:
    return bool(_REFUSED.search(error)) or (
        "Batch job submission failed" not in error and bool(_REFUSED_BEFORE.search(error))
    )


def _why(answer: Answer) -> str:
    return answer.said if answer.code != 0 else "what it printed is none of its answers"
