"""Every error a user can meet, with its exit code.

Dsv3Error                70  a defect of ours, unless a subclass says otherwise
|- ConfigError            2  the configuration is wrong: every problem at once
|- CapacityError          3  this machine cannot: GPUs, memory, storage
|  `- LockHeldError       3  another process trains this run
|- StaleAttemptError      3  a later attempt has taken the run over; this one may not write
|- CheckpointError        4  a checkpoint is damaged, incomplete or of another model
|- NumericHealthError     5  a non-finite loss or norm, FP8 that did not run
|- DataError              6  data missing, malformed, too short or changed
|- ArmsFailedError        7  some arms of a sweep failed
|- RankLostError          8  a rank died
|- SavedForRequeueError  85  a signal came, everything is saved, please run again
`- InterruptedError_    130  Ctrl-C, everything is saved
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsv3.redaction import redact, redact_arguments


@dataclass(frozen=True)
class Problem:
    """One thing wrong: the setting as the user would write it, the rule it breaks, the way out."""

    setting: str
    rule: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.setting}: {self.rule}" if self.setting else self.rule
        return f"{text}; {self.remedy}" if self.remedy else text

    def redacted(self) -> "Problem":
        """The same without secrets."""
        (setting,) = redact_arguments([self.setting])
        return Problem(setting, redact(self.rule), redact(self.remedy))


class Dsv3Error(Exception):
    """Base of what users see: `exit_code` ends the process, `id` is stable for scripts."""

    exit_code = 70
    id = "internal"

    def __init__(self, problems: str | Problem | Sequence[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem("", problems)
        found = (problems,) if isinstance(problems, Problem) else tuple(problems)
        # Here, because from here on it is printed, logged, written down and told other processes.
        self.problems = tuple(problem.redacted() for problem in found)
        super().__init__("\n".join(map(str, self.problems)))

    def lines(self) -> list[str]:
        """What people read on stderr: one line for each problem."""
        return [f"error[{self.id}]: {problem}" for problem in self.problems]

    def record(self) -> dict[str, Any]:
        """This error as plain data: what one process tells another."""
        problems = [vars(problem) for problem in self.problems]
        return {"id": self.id, "exit_code": self.exit_code, "problems": problems}

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> "Dsv3Error":
        """The error that `record` was made of, of its own class, to be raised in this process."""
        kind = _by_id(Dsv3Error).get(record["id"], Dsv3Error)
        error = kind([Problem(**problem) for problem in record["problems"]])
        error.id, error.exit_code = record["id"], record["exit_code"]
        return error


class ConfigError(Dsv3Error):
    """The configuration cannot be what was meant; also a layout that is impossible anywhere."""

    exit_code = 2
    id = "config"


class CapacityError(Dsv3Error):
    """The configuration is fine, this machine cannot run it."""

    exit_code = 3
    id = "capacity"


class LockHeldError(CapacityError):
    """Another live process holds the run."""

    id = "lock"


class StaleAttemptError(Dsv3Error):
    """A later attempt at the run has begun: what this one has must not be kept."""

    exit_code = 3
    id = "stale"


class CheckpointError(Dsv3Error):
    """A checkpoint is damaged, incomplete, or does not belong to this model."""

    exit_code = 4
    id = "checkpoint"


class NumericHealthError(Dsv3Error):
    """A non-finite loss or norm, or another precision; raised before the weights are touched."""

    exit_code = 5
    id = "numeric"


class DataError(Dsv3Error):
    """Data missing, empty, malformed, too short, or changed since the run began."""

    exit_code = 6
    id = "data"


class ArmsFailedError(Dsv3Error):
    """Some arms of a sweep failed; the others are done."""

    exit_code = 7
    id = "arms"


class RankLostError(Dsv3Error):
    """A rank died or stopped answering."""

    exit_code = 8
    id = "rank"


class SavedForRequeueError(Dsv3Error):
    """Stopped by a signal after saving; the same command goes on."""

    exit_code = 85
    id = "saved"


class InterruptedError_(Dsv3Error):  # noqa: N801, N818 - the builtin InterruptedError means EINTR
    """Stopped by Ctrl-C after saving; the same command goes on."""

    exit_code = 130
    id = "interrupted"


def _by_id(base: type[Dsv3Error]) -> dict[str, type[Dsv3Error]]:
    """The error classes below `base` by id; of those that share one, the most general."""
    found: dict[str, type[Dsv3Error]] = {}
    for kind in base.__subclasses__():
        found |= _by_id(kind) | {kind.id: kind}
    return found
