"""Runs on a cluster: when each of them starts and ends, if they start in their order."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from dsv3.errors import CapacityError, Problem


@dataclass(frozen=True)
class Job:
    """A run as the cluster sees it."""

    name: str
    ranks: int
    seconds: float


@dataclass(frozen=True)
class Placed:
    """A job with its seconds since the first began."""

    job: Job
    start_s: float
    end_s: float


def place(jobs: Sequence[Job], gpus: int) -> list[Placed]:
    """Start each job as soon as those before it have started and GPUs enough are free.

    Raises CapacityError if a job alone is too large.
    """
    too_large = [job for job in jobs if job.ranks > gpus]
    if too_large:
        largest = max(job.ranks for job in too_large)
        rule = f"the layout has {largest:,} ranks, one GPU each"
        remedy = f"use --gpus {largest} at least, or look for another layout: a plan of one run"
        remedy += " with --gpus and without parallelism lists those that fit"
        raise CapacityError(Problem(f"--gpus {gpus}", rule, remedy))
    placed: list[Placed] = []
    running: list[tuple[float, int]] = []
    free, now = gpus, 0.0
    for job in jobs:
        while free < job.ranks:
            now, ranks = heapq.heappop(running)
            free += ranks
        free -= job.ranks
        heapq.heappush(running, (now + job.seconds, job.ranks))
        placed.append(Placed(job, now, now + job.seconds))
    return placed


def makespan_s(placed: Sequence[Placed]) -> float:
    """Seconds until the last one ends."""
    return max((each.end_s for each in placed), default=0.0)
