"""How the runs of a command ended, told at its end: a result, or a table of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsv3.commands import console
from dsv3.errors import Problem, SavedForRequeueError
from dsv3.runs.directory import RunDirectory
from dsv3.sweep.arms import Arm
from dsv3.sweep.runner import exit_code_of


@dataclass(frozen=True)
class Ended:
    """How one run ended; `trained` is False where there was nothing left to do."""

    arm: Arm
    directory: RunDirectory
    exit_code: int
    trained: bool

    def record(self) -> dict[str, Any]:
        """One entry of `--json`."""
        return self.arm.record() | {
            "directory": str(self.directory.path),
            "status": str(self.directory.status()),
            "exit_code": self.exit_code,
            "trained": self.trained,
            "result": self.directory.result(),
            "failure": self.directory.failure(),
        }


def conclude(
    ended: Sequence[Ended],
    *,
    as_json: bool,
    runs: int = 1,
    stop_code: int | None = None,
    sweep: Mapping[str, Any] | None = None,
) -> int:
    """Print every run's result and failure; returns the exit code of all `runs`."""
    if as_json:
        about = {} if sweep is None else {"sweep": sweep}
        console.write_json(about | {"runs": [each.record() for each in ended]})
    elif runs == 1 and ended:
        _print_one(ended[0])
    elif ended:
        _print_table(ended)
    return exit_code_of([each.exit_code for each in ended], runs, stop_code)


def say_failed_before(directory: RunDirectory, *, quiet: bool) -> int:
    """Say how the run failed the last time; returns the exit code it ended with."""
    failure = directory.failure()
    assert failure is not None, f"{directory.path} is said to have failed"
    if not quiet:
        for problem in failure["problems"]:
            console.note(f"error[{failure['id']}]: {Problem(**problem)}")
        console.note(f"{directory.path} ended so before; --retry tries it again")
    return int(failure["exit_code"])


def outcome_of(directory: RunDirectory) -> int:
    """The exit code of a run that went on elsewhere, from its files."""
    failure = directory.failure()
    if directory.result() is not None:
        return 0
    return SavedForRequeueError.exit_code if failure is None else int(failure["exit_code"])


def _print_one(ended: Ended) -> None:
    result = ended.directory.result()
    if result is not None:
        again = "" if ended.trained else " (it was done already; nothing was trained)"
        console.write(f"run              {ended.directory.path}{again}")
        console.write(f"validation loss  {result['loss']:.4f} nats per token")
        console.write(f"unigram entropy  {result['unigram_entropy']:.4f} nats per token")
        console.write(f"bits per byte    {result['bpb']:.4f}")


def _print_table(ended: Sequence[Ended]) -> None:
    rows = []
    for each in ended:
        result = each.directory.result()
        figures = (f"{result['loss']:.4f}", f"{result['bpb']:.4f}") if result else ("", "")
        status = str(each.directory.status())
        done = status if each.trained else f"{status} before"
        seed = str(each.arm.config.seed)
        rows.append((each.arm.name, seed, done, *figures, str(each.directory.path)))
    console.write_table(
        ("arm", "seed", "status", "validation loss", "bits per byte", "run directory"), rows
    )
