"""How a group of ranks ended: which one failed first, and what the user is told of it."""

import contextlib
import signal
import sys
from collections.abc import Sequence
from typing import Any

from dsv3.errors import CapacityError, Dsv3Error, Problem, RankLostError
from dsv3.launch.group import GOOD, Ending, Member
from dsv3.launch.watchdog import Silence
from dsv3.runs.board import Failure
from dsv3.runs.directory import RunDirectory
from dsv3.runs.lock import RunLock
from dsv3.runs.rank import log_name
from dsv3.runs.records import EventLog

GO_ON = "ask for the same run again: it goes on from its last checkpoint"
_MOST_PEERS = 3


def conclude(run: RunDirectory, ending: Ending) -> int:
    """Write down and say how the ranks ended; returns the exit code of the run.

    Raises RankLostError naming the rank that was lost first. What befell other ranks because of it
    is left to their logs.
    """
    if ending.silence is not None:
        raise _silent(run, ending, ending.silence)
    dead = [member for member in ending.members if _died_unnamed(member)]
    if dead:
        raise _dead(run, dead[0])
    cause = cause_of(ending)
    return 0 if cause is None else _failed(run, cause)


def cause_of(ending: Ending) -> Member | None:
    """The rank that said why all of them ended; None if none had anything to say."""
    failed = [member for member in ending.members if member.failure is not None]
    return _cause(failed) if failed else None


def killed_by(name: str) -> str:
    """`killed by SIGSEGV`, with what is mostly behind it."""
    if name != "SIGKILL":
        return f"killed by {name}"
    return (
        "killed by SIGKILL (if nobody did that, the kernel ran out of memory: lower"
        " schedule.micro_batch_size)"
    )


def _died_unnamed(member: Member) -> bool:
    """Whether a rank died of itself; one that had said why before is not counted."""
    if member.killed_by_launcher or member.failure is not None:
        return False
    return member.code != 0


def _cause(failed: Sequence[Member]) -> Member:
    """Who ended the run: not who lost touch with it, nor who was asked to stop; then by time.

    Of ranks that say the same, the first in number: what all met is no matter of one of them.
    """

    def key(member: Member) -> tuple[bool, bool, float]:
        failure = _failure(member)
        code = failure.error.exit_code
        return (code == RankLostError.exit_code, code in GOOD, failure.at_s)

    cause = min(failed, key=key)
    said = _failure(cause).error.problems
    same = [each for each in failed if _failure(each).error.problems == said]
    return min(same, key=lambda member: member.rank)


def _failure(member: Member) -> Failure:
    assert member.failure is not None, f"{member.rank=} did not fail"
    return member.failure


def _failed(run: RunDirectory, member: Member) -> int:
    failure = _failure(member)
    error = failure.error
    if error.exit_code == RankLostError.exit_code:
        _record(run, {"rank": member.rank, "problems": list(map(str, error.problems))})
    if failure.lasting:
        with (
            contextlib.suppress(CapacityError),
            RunLock(run.lock_path),
            EventLog(run.events_path) as events,
        ):
            run.mark_failed(error, rank=member.rank)
            said = list(map(str, error.problems))
            events.event("failed", exit_code=error.exit_code, rank=member.rank, problems=said)
    if member.rank != 0:
        log = run.logs / log_name(member.rank)
        where = Problem(f"rank {member.rank}", f"was the first to say so; its log: {log}")
        error = Dsv3Error.from_record(error.record() | {"problems": _with(error, where)})
    with contextlib.suppress(OSError):  # nobody reads stderr any more
        sys.stderr.writelines(f"{line}\n" for line in error.lines())
    return error.exit_code


def _with(error: Dsv3Error, more: Problem) -> list[dict[str, Any]]:
    return [vars(problem) for problem in (*error.problems, more)]


def _dead(run: RunDirectory, member: Member) -> RankLostError:
    assert member.code is not None and member.sign is not None, f"{member.rank=} is alive"
    record: dict[str, Any] = {"rank": member.rank, "phase": member.sign.phase}
    if member.code < 0:
        name = signal.Signals(-member.code).name
        how, record["signal"] = f"was {killed_by(name)}", name
    else:
        how, record["exit_code"] = "ended without a named error", member.code
    _record(run, record)
    log = run.logs / log_name(member.rank)
    rule = f"rank {member.rank} {how} while {member.sign}; its log: {log}"
    return RankLostError(Problem(str(run.path), rule, GO_ON))


def _silent(run: RunDirectory, ending: Ending, silence: Silence) -> RankLostError:
    rank, sign = silence.rank, silence.sign
    place = ending.whereabouts[rank]
    _record(
        run,
        {
            "rank": rank,
            "phase": sign.phase,
            "silent_s": round(silence.seconds, 1),
            "state": place.state,
            "stack": list(map(str, place.frames)),
        },
    )
    log = run.logs / log_name(rank)
    rule = (
        f"rank {rank} gave no sign of life for {silence.seconds:.0f} s while {sign}"
        f" (limit {sign.limit_s:g} s); its log: {log}"
    )
    problems = [Problem(str(run.path), rule, GO_ON), Problem(f"rank {rank}", str(place))]
    peers = [other for other in sorted(ending.whereabouts) if other != rank]
    for other in peers[:_MOST_PEERS]:
        problems.append(Problem(f"rank {other} then", str(ending.whereabouts[other])))
    if len(peers) > _MOST_PEERS:
        more = f"and {len(peers) - _MOST_PEERS} more; stacks: {run.logs / 'rank-*.stack'}"
        problems.append(Problem("", more))
    return RankLostError(problems)


def _record(run: RunDirectory, record: dict[str, Any]) -> None:
    # All ranks are gone: nobody else writes there.
    with contextlib.suppress(CapacityError), EventLog(run.events_path) as events:
        events.event("rank_lost", **record)
