"""Runs Slurm's commands: in bounded time and a clean environment, none outliving this process."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsv3.errors import Problem
from dsv3.launch.scheduler import SchedulerError
from dsv3.runs.parent import end_with_parent

# Inside of an allocation, or of a shell with habits, these would change what the commands do.
_PREFIXES = ("SBATCH_", "SLURM_", "SQUEUE_", "SCONTROL_", "SCANCEL_", "SACCT_", "SINFO_", "SRUN_")
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")
_SHOWN = 400


@dataclass(frozen=True)
class Answer:
    """What a command said; `code` is None if it took too long, negative if a signal ended it."""

    command: str
    code: int | None
    out: str
    err: str

    @property
    def said(self) -> str:
        """For people: the error, in one line."""
        if self.code is None:
            return "it took too long"
        words = " ".join((self.err.strip() or self.out.strip()).split())
        return words[:_SHOWN] or f"exit code {self.code}"


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for a command: messages in English, and no options in variables."""
    own = {
        name: value
        for name, value in environment.items()
        if name in _KEPT or not name.startswith(_PREFIXES)
    }
    return own | {"LC_ALL": own.get("LC_ALL", "C.UTF-8")}


def ask(command: Sequence[str], *, seconds: float, directory: Path | None = None) -> Answer:
    """Run a command for at most `seconds` and return what it says.

    It dies with this process: none is left to hand in a job that somebody else asks for again.
    Raises SchedulerError if there is no such program.
    """
    parent = os.getpid()
    try:
        done = subprocess.run(  # noqa: S603 - no shell
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
            cwd=directory,
            env=clean_environment(os.environ),
            preexec_fn=lambda: end_with_parent(parent, signal.SIGKILL),
        )
    except subprocess.TimeoutExpired as late:
        return Answer(command[0], None, _text(late.stdout), _text(late.stderr))
    except FileNotFoundError as error:
        rule = f"`{command[0]}` is not on the PATH: no Slurm here"
        remedy = "go to a machine of the cluster, or train here with launcher=local"
        raise SchedulerError(Problem("launcher=slurm", rule, remedy)) from error
    except OSError as error:
        raise SchedulerError(Problem(command[0], f"cannot be started ({error})")) from error
    return Answer(command[0], done.returncode, _text(done.stdout), _text(done.stderr))


def _text(data: bytes | None) -> str:
    return (data or b"").decode(errors="replace")
