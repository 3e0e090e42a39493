"""Runs a sweep whose record is written: one process at a time, shown as it goes."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dsv3.commands import console
from dsv3.commands.ending import Ended, conclude
from dsv3.commands.sweep_view import view
from dsv3.errors import LockHeldError
from dsv3.runs.lock import RunLock, current_holder
from dsv3.sweep.record import SweepRecord, lock_path, record_path
from dsv3.sweep.runner import Job, Runner
from dsv3.sweep.slots import Slots

POLL_S = 1.0


def run_sweep(
    record: SweepRecord,
    root: Path,
    jobs: Sequence[Job],
    room: Slots,
    *,
    retry: bool,
    as_json: bool,
) -> int:
    """Train what is not done of a sweep and print what became of all of it; the exit code."""
    if not as_json:
        console.note(f"sweep {record.id}: {len(jobs)} runs; `dsv3 status {record.id}` shows them")
        if room.warning is not None:
            console.note(f"warning: {room.warning}")
    with (
        _held(lock_path(root, record.id), quiet=as_json),
        view(record.id, jobs, side_by_side=room.count > 1, quiet=as_json) as watcher,
    ):
        runner = Runner(jobs, room, watcher, retry=retry, quiet=as_json)
        outcomes = runner.run()
    return conclude(
        [Ended(o.job.arm, o.job.directory, o.exit_code, o.trained) for o in outcomes],
        as_json=as_json,
        runs=len(jobs),
        stop_code=runner.stop_code,
        sweep={"id": record.id, "record": str(record_path(root, record.id))},
    )


@contextlib.contextmanager
def _held(path: Path, *, quiet: bool) -> Iterator[None]:
    """Hold the lock of a sweep; the same sweep in another process is let come to its end first."""
    lock = RunLock(path)
    said = False
    while not lock.held:
        try:
            lock.acquire()
        except LockHeldError:
            holder = current_holder(path)
            if holder is not None and not said and not quiet:
                who = f"process {holder.pid} on host {holder.host}"
                console.note(f"waiting for {who}, which runs this sweep")
                said = True
            time.sleep(POLL_S)
    try:
        yield
    finally:
        lock.release()
