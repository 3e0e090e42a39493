"""Runs on a cluster: when each of them starts and ends, if they start in their order."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


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

    A job must not have more ranks than there are GPUs.
    """
    assert all(job.ranks <= gpus for job in jobs), f"{gpus=} {jobs=}"
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
