"""`dsv3 logs`: the last lines of what ranks wrote, and what they go on writing."""

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsv3.commands import console
from dsv3.commands.targets import FoundSweep, Target, targets
from dsv3.errors import CapacityError, ConfigError, Problem
from dsv3.files import storage_error
from dsv3.launch.looking import look
from dsv3.launch.submission import Submission, place_of
from dsv3.runs.directory import RunDirectory, Status
from dsv3.runs.lock import current_holder
from dsv3.runs.rank import log_name

POLL_S = 0.5
LOOK_EVERY_S = 5.0
"""How often a cluster is asked whether it has the runs."""
_TAIL_BYTES = 1 << 20


@dataclass
class _Log:
    """The log of one rank; `end` is how far it has been printed."""

    run: RunDirectory
    arm: str
    rank: int
    path: Path
    end: int = 0

    @property
    def title(self) -> str:
        return f"==> {self.arm}{' ' if self.arm else ''}{self.path} <=="


def logs(words: Sequence[str], *, rank: int, follow: bool, lines: int, as_json: bool) -> int:
    """Print the last `lines` lines of a rank's log of each run that is named; the exit code.

    With `follow` also what comes after them, until nobody trains these runs any more.
    """
    if follow and as_json:
        raise ConfigError(Problem("--follow --json", "a JSON document has an end", "leave one out"))
    found = targets(words, verb="logs")
    every = [log for target in found for log in _logs(target, rank)]
    if as_json:
        console.write_json({"logs": [_data(log, lines) for log in every]})
        return 0
    there = [log for log in every if log.path.exists()]
    if not there and not follow:
        raise _nothing(every, rank)
    for log in there:
        _print(log, _last(log, lines), titled=len(every) > 1)
    if follow:
        _follow(every, found)
    return 0


def _logs(target: Target, rank: int) -> list[_Log]:
    if isinstance(target, FoundSweep):
        runs = [(target.record.directory(r), f"{r.arm} seed {r.seed}") for r in target.record.runs]
    else:
        runs = [(target.directory, "")]
    return [log for run, arm in runs for log in _logs_of(run, arm, rank)]


def _logs_of(run: RunDirectory, arm: str, rank: int) -> list[_Log]:
    """The log of a rank; that of a cluster's job comes before that of its first rank."""
    own = _Log(run, arm, rank, run.logs / log_name(rank))
    place = place_of(run) if rank == 0 else None
    if place is None:
        return [own]
    return [_Log(run, arm, rank, Submission(place.submission).output(place.index)), own]


def _nothing(every: Sequence[_Log], rank: int) -> ConfigError:
    there = sorted(path.name for log in every for path in log.run.logs.glob("rank-*.log"))
    if there:
        remedy = f"there are {', '.join(dict.fromkeys(there))}"
    else:
        remedy = "no rank of it has started yet; `dsv3 status` shows where it stands"
    return ConfigError(Problem(f"--rank {rank}", "there is no log of this rank", remedy))


def _data(log: _Log, lines: int) -> dict[str, object]:
    shown = _last(log, lines) if log.path.exists() else []
    return {"run": log.run.id, "rank": log.rank, "path": str(log.path), "lines": shown}


def _last(log: _Log, lines: int) -> list[str]:
    """The last lines, a torn one left for later; no more than a MiB of them."""
    try:
        with log.path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read(min(size, _TAIL_BYTES))
    except OSError as error:
        raise _unreadable(log, error) from error
    whole = text[: text.rfind(b"\n") + 1]
    log.end = size - len(text) + len(whole)
    return whole.decode(errors="replace").splitlines()[-lines:] if lines > 0 else []


def _more(log: _Log) -> list[str]:
    """Whole lines beyond those that have been printed."""
    try:
        with log.path.open("rb") as file:
            file.seek(log.end)
            text = file.read(_TAIL_BYTES)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(log, error) from error
    whole = text[: text.rfind(b"\n") + 1]
    log.end += len(whole)
    return whole.decode(errors="replace").splitlines()


def _follow(every: Sequence[_Log], found: Iterable[Target]) -> None:
    last: _Log | None = None
    with_cluster, looked_at_s = False, -LOOK_EVERY_S
    while True:
        if time.monotonic() - looked_at_s >= LOOK_EVERY_S:
            with_cluster = look({log.run.path: log.run for log in every}.values()).any_live
            looked_at_s = time.monotonic()
        goes_on = with_cluster or _any_running(every, found)  # before reading what was written
        for log in every:
            more = _more(log)
            if more:
                _print(log, more, titled=len(every) > 1 and log is not last)
                last = log
        if not goes_on:
            return
        time.sleep(POLL_S)


def _any_running(every: Iterable[_Log], found: Iterable[Target]) -> bool:
    sweeps = [target for target in found if isinstance(target, FoundSweep)]
    return any(current_holder(sweep.lock_path) is not None for sweep in sweeps) or any(
        log.run.exists() and log.run.status() is Status.RUNNING for log in every
    )


def _print(log: _Log, lines: Sequence[str], *, titled: bool) -> None:
    if titled:
        console.write(console.printable(log.title))
    for line in lines:
        console.write(console.printable(line, "\t"))
    if lines:
        sys.stdout.flush()


def _unreadable(log: _Log, error: OSError) -> CapacityError:
    return storage_error(log.path, error, "make it readable")
