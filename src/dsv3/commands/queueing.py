"""How far runs are, with what a cluster says of those that were handed in."""

from collections.abc import Sequence
from dataclasses import replace

from dsv3.launch.looking import Look, Seen, look
from dsv3.runs.directory import RunDirectory, Status
from dsv3.sweep.progress import Gauge, Progress

QUEUED, STARTING = "queued", "starting"


def read(gauges: Sequence[Gauge]) -> tuple[list[Progress], Look]:
    """Every run as its files and its scheduler have it; asked about once for all of them."""
    runs: list[RunDirectory] = [gauge.run for gauge in gauges if gauge.run.exists()]
    now = look(runs)  # before the files: what a job wrote before it ended is read after that
    found = []
    for gauge in gauges:
        progress = gauge.read()
        seen = now.seen.get(gauge.run.path)
        found.append(progress if seen is None else _seen(progress, seen))
    return found, now


def _seen(progress: Progress, seen: Seen) -> Progress:
    if progress.status == Status.DONE:
        return progress
    job = seen.job
    said = None if job is None else str(job)
    if job is None or not job.live:
        return replace(progress, job=said, failure=progress.failure or seen.problem)
    if progress.status == Status.RUNNING:
        return replace(progress, job=said)
    return replace(progress, job=said, status=STARTING if job.running else QUEUED, failure=None)
