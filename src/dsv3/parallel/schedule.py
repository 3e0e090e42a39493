"""Pipeline schedules: what each rank does in which order, and what a perfect machine makes of it.

A *stage* is a rank's position in the pipeline, a *part* one contiguous range of layers. Under 1F1B
a rank holds one part. Under DualPipeV (DualPipe cut in half: deepseek-ai/DualPipe) it holds two of
2 x stages: the one that comes as early as its stage says, and the one that comes as late, so that
the first rank begins and ends the model. A backward gives the gradients of inputs and weights
together: the weights' are not held back to fill bubbles.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from dsv3.config.parallelism import PARTS_PER_STAGE, PipelineSchedule, fewest_micro_batches

Kind = Literal["forward", "backward"]


class Action(NamedTuple):
    """One pass of a micro batch through one of the rank's parts."""

    kind: Kind
    part: int  # 0 or 1, local to the rank
    micro_batch: int


def parts_per_stage(schedule: PipelineSchedule) -> int:
    """Parts that a rank holds."""
    return PARTS_PER_STAGE[schedule]


def smallest_number_of_micro_batches(schedule: PipelineSchedule, stages: int) -> int:
    """Micro batches per step from which on the schedule has a steady state; fewer run as well."""
    return fewest_micro_batches(schedule, stages)


def global_part(schedule: PipelineSchedule, stages: int, stage: int, part: int) -> int:
    """Where in the model a rank's part is, counted from 0."""
    assert 0 <= stage < stages, f"{stage=} {stages=}"
    assert 0 <= part < parts_per_stage(schedule), f"{part=} {schedule=}"
    return stage if part == 0 else 2 * stages - 1 - stage


def holder(schedule: PipelineSchedule, stages: int, global_part: int) -> tuple[int, int]:
    """(stage, part) of the rank that holds a part of the model: the inverse of `global_part`."""
    assert 0 <= global_part < parts_per_stage(schedule) * stages, f"{global_part=} {stages=}"
    if global_part < stages:
        return global_part, 0
    return 2 * stages - 1 - global_part, 1


def actions(
    schedule: PipelineSchedule, stages: int, micro_batches: int, stage: int
) -> list[Action]:
    """Everything the rank at `stage` does in a step, in its order.

    The micro batches of a part are in rising order, forward and backward. With fewer micro batches
    than `smallest_number_of_micro_batches` the order is that of so many, without those that are
    not there: an order free of deadlocks stays so when a micro batch is left out of every rank.
    """
    assert 0 <= stage < stages, f"{stage=} {stages=}"
    assert micro_batches > 0, f"{micro_batches=}"
    enough = max(micro_batches, smallest_number_of_micro_batches(schedule, stages))
    order = _one_forward_one_backward if schedule == "1f1b" else _dual_pipe_v
    numbered = _numbered(order(stages, enough, stage))
    return [action for action in numbered if action.micro_batch < micro_batches]


def _one_forward_one_backward(stages: int, micro_batches: int, stage: int) -> Iterator[str]:
    """1F1B (PipeDream-flush): as many in flight as there are stages from here to the end."""
    ahead = min(stages - 1 - stage, micro_batches)
    yield from ["F0"] * ahead
    yield from ["F0", "B0"] * (micro_batches - ahead)
    yield from ["B0"] * ahead


def _dual_pipe_v(stages: int, micro_batches: int, stage: int) -> Iterator[str]:
    """DualPipeV without its split backward; `after` ranks lie between here and the turn.

    The numbers make each of the four kinds occur once per micro batch:
    F0: 2 after + upto + steady, F1: upto + after + steady + after, and so on.
    """
    after, upto = stages - 1 - stage, stage + 1
    steady = micro_batches - 2 * stages + upto
    # 1. Down the V: the first micro batches reach the last rank, which turns them round.
    yield from ["F0"] * (2 * after)
    # 2. They come back up.
    yield from ["F0", "F1"] * upto
    # 3. The first ones have seen the head; their gradients come down.
    yield from ["B1", "F1"] * after
    # 4. Steady state: a forward of one part beside the backward of the other.
    yield from ["F0", "B1", "F1", "B0"] * steady
    # 5. No new micro batches; those under way turn.
    yield from ["B1", "F1", "B0"] * after
    # 6. No forwards are left.
    yield from ["B1", "B0"] * upto
    # 7. Gradients go up to the embedding.
    yield from ["B0"] * after


def _numbered(order: Iterator[str]) -> Iterator[Action]:
    """Give each kind of action its micro batches in rising order."""
    done = dict.fromkeys(("F0", "F1", "B0", "B1"), 0)
    for name in order:
        yield Action("forward" if name[0] == "F" else "backward", int(name[1]), done[name])
        done[name] += 1


class Timed(NamedTuple):
    """An action with its seconds since the step began."""

    action: Action
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Simulated:
    """A step on ranks that do nothing but the actions."""

    ranks: list[list[Timed]]  # by stage

    @property
    def makespan_s(self) -> float:
        """Seconds from the first start to the last end."""
        return max(timed.end_s for rank in self.ranks for timed in rank)

    @property
    def bubbles_s(self) -> list[float]:
        """Seconds of the step in which each rank has nothing to do."""
        return [
            self.makespan_s - sum(timed.end_s - timed.start_s for timed in rank)
            for rank in self.ranks
        ]

    @property
    def bubble_share(self) -> float:
        """Share of all ranks' time that is bubble."""
        return sum(self.bubbles_s) / (len(self.ranks) * self.makespan_s)


def simulate(
    schedule: PipelineSchedule,
    stages: int,
    micro_batches: int,
    forward_s: float,
    backward_s: float,
    send_s: float = 0.0,
) -> Simulated:
    """Run a step in thought: a receive waits, a send does not; `send_s` between two ranks.

    `forward_s` and `backward_s` are those of one part. Fails on an order that deadlocks.
    """
    orders = [actions(schedule, stages, micro_batches, stage) for stage in range(stages)]
    ranks: list[list[Timed]] = [[] for _ in orders]
    ends_s: dict[tuple[Kind, int, int], tuple[int, float]] = {}
    last = parts_per_stage(schedule) * stages - 1
    seconds = {"forward": forward_s, "backward": backward_s}
    moved = True
    while moved:
        moved = False
        for stage, (order, rank) in enumerate(zip(orders, ranks, strict=True)):
            for action in order[len(rank) :]:
                kind, _, micro_batch = action
                part = global_part(schedule, stages, stage, action.part)
                start_s = rank[-1].end_s if rank else 0.0
                before = _before(kind, part, last)
                if before is not None:
                    if (*before, micro_batch) not in ends_s:
                        break
                    sender, end_s = ends_s[*before, micro_batch]
                    start_s = max(start_s, end_s + (send_s if sender != stage else 0.0))
                rank.append(Timed(action, start_s, start_s + seconds[kind]))
                ends_s[kind, part, micro_batch] = stage, rank[-1].end_s
                moved = True
    stuck = {
        stage: order[len(rank)]
        for stage, (order, rank) in enumerate(zip(orders, ranks, strict=True))
        if len(rank) < len(order)
    }
    assert not stuck, f"{schedule=} {stages=} {micro_batches=} deadlock at {stuck=}"
    return Simulated(ranks)


def _before(kind: Kind, part: int, last: int) -> tuple[Kind, int] | None:
    """What a pass through a part of the model has to wait for; None at the embedding."""
    if kind == "forward":
        return ("forward", part - 1) if part > 0 else None
    return ("backward", part + 1) if part < last else ("forward", part)
