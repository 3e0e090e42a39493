"""A step of a pipeline in thought: ranks do their work in order and wait for what they need."""

from dataclasses import dataclass
from typing import NamedTuple

from dsv3.plan.methods import ChunkTimes, Method, Work, orders


class Done(NamedTuple):
    """A piece of work with its seconds since the step began."""

    work: Work
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Timeline:
    """What each rank does when."""

    method: Method
    ranks: list[list[Done]]

    @property
    def makespan_s(self) -> float:
        """Seconds from the first start to the last end."""
        return max(rank[-1].end_s for rank in self.ranks)

    @property
    def bubbles_s(self) -> list[float]:
        """Seconds in which each rank has nothing to do."""
        busy = [sum(done.end_s - done.start_s for done in rank) for rank in self.ranks]
        return [self.makespan_s - each for each in busy]

    @property
    def bubble_share(self) -> float:
        """Share of all ranks' time that is bubble."""
        return sum(self.bubbles_s) / (len(self.ranks) * self.makespan_s)


Event = tuple[str, int, int, int]
"""F or B, lane of the micro batches (by direction), stage of the lane, micro batch."""


def run(method: Method, ranks: int, micro_batches: int, times: ChunkTimes) -> Timeline:
    """Simulate a step; messages take no time.

    Raises AssertionError on an order that deadlocks.
    """
    todo = orders(method, ranks, micro_batches)
    last = (2 * ranks if method == "dualpipev" else ranks) - 1
    seconds = {
        "F": times.forward,
        "B": times.backward,
        "I": times.backward - times.weights,
        "W": times.weights,
        "P": times.pair,
    }
    done: list[list[Done]] = [[] for _ in todo]
    ends: dict[Event, float] = {}
    moved = True
    while moved:
        moved = False
        for rank, order in enumerate(todo):
            while len(done[rank]) < len(order):
                work = order[len(done[rank])]
                events = list(_events(method, ranks, rank, work))
                needed = [before for event in events for before in _before(event, last)]
                if any(event not in ends for event in needed):
                    break
                free = done[rank][-1].end_s if done[rank] else 0.0
                start = max([free, *(ends[event] for event in needed)])
                end = start + seconds[work.kind]
                ends.update(dict.fromkeys(events, end))
                done[rank].append(Done(work, start, end))
                moved = True
    stuck = {rank: len(each) for rank, each in enumerate(done) if len(each) < len(todo[rank])}
    assert not stuck, f"{method=} {ranks=} {micro_batches=} deadlocks: {stuck=}"
    return Timeline(method, done)


def _events(method: Method, ranks: int, rank: int, work: Work) -> list[Event]:
    """What others wait for; of weights' gradients, nothing."""
    if work.kind == "W":
        return []
    kinds = {"F": "F", "B": "B", "I": "B", "P": "FB"}[work.kind]
    return [
        (kind, *_place(method, ranks, rank, chunk), micro_batch)
        for kind, (chunk, micro_batch) in zip(kinds, work.chunks, strict=True)
    ]


def _place(method: Method, ranks: int, rank: int, chunk: int) -> tuple[int, int]:
    """Lane and stage of a rank's chunk."""
    match method:
        case "dualpipe":
            return chunk, rank if chunk == 0 else ranks - 1 - rank
        case "dualpipev":
            return 0, rank if chunk == 0 else 2 * ranks - 1 - rank
        case _:
            return 0, rank


def _before(event: Event, last: int) -> list[Event]:
    kind, lane, stage, micro_batch = event
    if kind == "F":
        return [("F", lane, stage - 1, micro_batch)] if stage > 0 else []
    if stage < last:
        return [("B", lane, stage + 1, micro_batch)]
    return [("F", lane, stage, micro_batch)]
