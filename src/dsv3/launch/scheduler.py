"""What a cluster's scheduler is to us: it takes arrays of jobs, and is asked for them by key.

Nothing here is Slurm's: another scheduler is one file with a class of this protocol.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dsv3.errors import CapacityError, Problem


class SchedulerError(CapacityError):
    """The scheduler refuses, or cannot be asked."""

    id = "scheduler"


class DoubtError(SchedulerError):
    """Nobody knows whether the scheduler has taken a job: ask for its key before trying again."""


@dataclass(frozen=True)
class Job:
    """One job of an array, as the scheduler tells; `id` is its own name for it."""

    key: str
    index: int
    id: str
    state: str
    reason: str = ""
    live: bool = False
    """Whether it waits, runs, or ends at the moment: nobody else may have its run."""
    running: bool = False

    def __str__(self) -> str:
        because = f" ({self.reason})" if self.reason not in ("", "None") else ""
        return f"job {self.id} {self.state.lower()}{because}"


class Scheduler(Protocol):
    """A batch system; every call comes back in bounded time."""

    @property
    def name(self) -> str:
        """What people call it."""

    def submit(self, script: Path, key: str) -> str:
        """Hand in an array; its id. Nothing waits for the jobs.

        Raises SchedulerError if it was refused for certain, DoubtError if it may have been taken.
        """

    def jobs(self, keys: Collection[str]) -> list[Job]:
        """The jobs it knows of these keys, ended ones for a while, too.

        Raises SchedulerError if there is no answer to be believed: then nothing is known.
        """

    def past(self, keys: Collection[str]) -> list[Job]:
        """Ended jobs of these keys from its books; empty if it keeps none."""

    def knows(self, array: str) -> bool:
        """Whether it knows the array of this id, asked in another way than `jobs` does."""

    def verdict(self, script: Path) -> str:
        """What it would say to this script, handing in nothing; raises SchedulerError."""

    def cancel(self, ids: Collection[str]) -> None:
        """Take these jobs back, waiting or running; raises SchedulerError."""

    def ask_to_save(self, ids: Collection[str]) -> None:
        """Have the ranks of these running jobs save and end; raises SchedulerError."""


def no_answer(name: str, command: str, said: str) -> Problem:
    """The problem of a scheduler that cannot be asked."""
    rule = f"{name} does not answer `{command}`: {said}"
    return Problem("", rule, "nothing was changed; ask again when it does (`dsv3 doctor` looks)")
