"""How ranks ended, from the machines they ran on to the one that judges it: small files."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from dsv3.errors import Dsv3Error, RankLostError
from dsv3.launch.group import GOOD, Ending, Member
from dsv3.launch.process import Process
from dsv3.launch.stacks import Frame, Whereabouts
from dsv3.launch.watchdog import Silence
from dsv3.runs.board import Failure, Sign
from dsv3.runs.files import write_json

NO_PROCESS = cast(Process, None)
"""That of a member on another machine, which is gone."""


def start_directory(of_job: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """Where the ranks of this start of a job say how they ended; a requeue is another start."""
    job = environment.get("SLURM_JOB_ID", "0")
    return of_job / f"start-{job}-{environment.get('SLURM_RESTART_COUNT', '0')}"


def write_ending(directory: Path, member: Member, ending: Ending | None = None) -> None:
    """Say how one rank ended; raises CapacityError."""
    directory.mkdir(parents=True, exist_ok=True)
    failure, sign = member.failure, member.sign
    record: dict[str, Any] = {
        "rank": member.rank,
        "code": member.code,
        "killed_by_launcher": member.killed_by_launcher,
        "at": time.time(),
        "sign": None if sign is None else vars(sign),
        "failure": None,
        "silence": None,
    }
    if failure is not None:
        record["failure"] = {"error": failure.error.record(), "lasting": failure.lasting}
    if ending is not None and ending.silence is not None:
        place = ending.whereabouts[member.rank]
        record["silence"] = {
            "seconds": ending.silence.seconds,
            "sign": vars(ending.silence.sign),
            "state": place.state,
            "frames": [vars(frame) for frame in place.frames],
            "file": str(place.file),
        }
    write_json(directory / f"rank-{member.rank}.json", record, writer=f"rank-{member.rank}")


def read_endings(directory: Path) -> Ending:
    """What the ranks of a start said, in the order in which they did.

    A file that cannot be read says nothing. Of ranks that were silent the first is the lost one.
    Once one has ended badly srun ends the others: who dies without a word after it is its victim.
    """
    found = Ending()
    records = [_read(path) for path in directory.glob("rank-*.json")]
    has_ended_badly = False
    for record in sorted(filter(None, records), key=lambda record: record["at"]):
        member = _member(record)
        if has_ended_badly and member.failure is None:
            member.killed_by_launcher = True
        has_ended_badly = has_ended_badly or _ends_others(member)
        found.members.append(member)
        silence = record["silence"]
        if silence is not None and found.silence is None:
            rank = record["rank"]
            found.silence = Silence(rank, silence["seconds"], Sign(**silence["sign"]))
            frames = tuple(Frame(**frame) for frame in silence["frames"])
            found.whereabouts[rank] = Whereabouts(silence["state"], frames, Path(silence["file"]))
    return found


def _ends_others(member: Member) -> bool:
    """Whether this was no consequence of another end: who lost touch may be told before the dead.

    Nor is it one to have saved and stopped.
    """
    if member.failure is None:
        return True
    return member.failure.error.exit_code not in (*GOOD, RankLostError.exit_code)


def _member(record: Mapping[str, Any]) -> Member:
    failure = record["failure"]
    return Member(
        rank=record["rank"],
        process=NO_PROCESS,
        code=record["code"],
        killed_by_launcher=record["killed_by_launcher"],
        sign=None if record["sign"] is None else Sign(**record["sign"]),
        failure=None
        if failure is None
        else Failure(record["at"], Dsv3Error.from_record(failure["error"]), failure["lasting"]),
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "at" in record else None
