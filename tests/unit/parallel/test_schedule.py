"""Pipeline schedules: complete, in order, free of deadlocks, within their memory, and how idle."""

from itertools import pairwise

import pytest

from dsv3.config.parallelism import PipelineSchedule
from dsv3.parallel.schedule import (
    Action,
    actions,
    global_part,
    holder,
    parts_per_stage,
    simulate,
    smallest_number_of_micro_batches,
)

CASES: list[tuple[PipelineSchedule, int]] = [
    *(("1f1b", stages) for stages in range(1, 9)),
    *(("dualpipev", stages) for stages in range(1, 7)),
    ("dualpipev", 16),
]


def counts_for(stages: int) -> list[int]:
    """Numbers of micro batches: from one to beyond what any schedule needs."""
    return [1, 2, stages, 2 * stages - 1, 2 * stages, 2 * stages + 1, 3 * stages, 5 * stages + 2]


def in_flight(order: list[Action]) -> int:
    """The most forwards of a rank whose backward is still to come."""
    level, most = 0, 0
    for action in order:
        level += 1 if action.kind == "forward" else -1
        most = max(most, level)
    return most


@pytest.mark.parametrize(("schedule", "stages"), CASES)
def test_everything_happens_once_and_in_order(schedule: PipelineSchedule, stages: int) -> None:
    for micro_batches in counts_for(stages):
        for stage in range(stages):
            order = actions(schedule, stages, micro_batches, stage)
            for kind in ("forward", "backward"):
                for part in range(parts_per_stage(schedule)):
                    found = [a.micro_batch for a in order if (a.kind, a.part) == (kind, part)]
                    assert found == list(range(micro_batches))
            assert len(order) == 2 * micro_batches * parts_per_stage(schedule)


@pytest.mark.parametrize(("schedule", "stages"), CASES)
def test_no_order_deadlocks_whatever_a_pass_takes(schedule: PipelineSchedule, stages: int) -> None:
    """And every pass starts after what it needs, by the rule of a pipeline written out again."""
    for micro_batches in counts_for(stages):
        for forward, backward, send in ((1, 2, 0), (1, 2, 1), (3, 1, 7)):
            simulated = simulate(schedule, stages, micro_batches, forward, backward, send)
            starts, ends, held_by = {}, {}, {}
            for stage, rank in enumerate(simulated.ranks):
                assert [t.action for t in rank] == actions(schedule, stages, micro_batches, stage)
                assert all(a.end_s <= b.start_s for a, b in pairwise(rank))
                for (kind, part, micro_batch), start, end in rank:
                    where = global_part(schedule, stages, stage, part)
                    starts[kind, where, micro_batch] = start
                    ends[kind, where, micro_batch] = end
                    held_by[where] = stage
            last = max(held_by)
            for (kind, where, micro_batch), start in starts.items():
                if (kind, where) == ("forward", 0):
                    continue
                if (kind, where) == ("backward", last):
                    assert start >= ends["forward", last, micro_batch]
                    continue
                sender = where - 1 if kind == "forward" else where + 1
                way = send if held_by[sender] != held_by[where] else 0
                assert start >= ends[kind, sender, micro_batch] + way


def test_a_deadlock_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def backwards_first(
        schedule: PipelineSchedule, stages: int, micro_batches: int, stage: int
    ) -> list[Action]:
        return sorted(actions(schedule, stages, micro_batches, stage))

    monkeypatch.setattr("dsv3.parallel.schedule.actions", backwards_first)
    with pytest.raises(AssertionError, match="deadlock"):
        simulate("1f1b", 2, 2, 1, 2)


@pytest.mark.parametrize(("schedule", "stages"), CASES)
def test_activations_in_flight_are_bounded(schedule: PipelineSchedule, stages: int) -> None:
    """1F1B: one for each stage from here on. DualPipeV: PP + 1 parts of PP = 2 x stages."""
    for micro_batches in counts_for(stages):
        for stage in range(stages):
            bound = stages - stage if schedule == "1f1b" else 2 * stages + 1
            most = in_flight(actions(schedule, stages, micro_batches, stage))
            assert most <= bound
            enough = smallest_number_of_micro_batches(schedule, stages)
            if micro_batches >= max(enough, stages):
                assert most == bound  # the published figure, not less


@pytest.mark.parametrize(("schedule", "stages"), CASES)
def test_parts_and_their_holders_are_inverse(schedule: PipelineSchedule, stages: int) -> None:
    parts = parts_per_stage(schedule) * stages
    places = [holder(schedule, stages, part) for part in range(parts)]
    assert [global_part(schedule, stages, *place) for place in places] == list(range(parts))
    assert len(set(places)) == parts
    if schedule == "dualpipev":
        assert places[0] == (0, 0)
        assert places[-1] == (0, 1)  # embedding and head on one rank
        assert places[stages - 1][0] == places[stages][0] == stages - 1  # the turn


def test_one_stage_has_no_bubble() -> None:
    assert actions("1f1b", 1, 2, 0) == [
        ("forward", 0, 0),
        ("backward", 0, 0),
        ("forward", 0, 1),
        ("backward", 0, 1),
    ]
    for micro_batches in (1, 2, 5):
        assert simulate("1f1b", 1, micro_batches, 1, 2).bubbles_s == [0]
        assert simulate("dualpipev", 1, micro_batches, 1, 2, send_s=9).bubbles_s == [0]


def test_two_stages_of_dualpipev_written_out() -> None:
    def names(stage: int) -> str:
        order = actions("dualpipev", 2, 4, stage)
        return " ".join(f"{a.kind[0].upper()}{a.part}.{a.micro_batch}" for a in order)

    assert names(0) == (
        "F0.0 F0.1 F0.2 F1.0 B1.0 F1.1 F0.3 B1.1 F1.2 B0.0 B1.2 F1.3 B0.1 B1.3 B0.2 B0.3"
    )
    assert names(1) == (
        "F0.0 F1.0 F0.1 F1.1 F0.2 B1.0 F1.2 B0.0 F0.3 B1.1 F1.3 B0.1 B1.2 B0.2 B1.3 B0.3"
    )


@pytest.mark.parametrize("stages", range(1, 9))
@pytest.mark.parametrize(("forward", "backward"), [(1, 2), (1, 1), (2, 3), (3, 1)])
def test_the_bubble_of_1f1b_is_the_published_one(stages: int, forward: int, backward: int) -> None:
    """(PP - 1)(F + B), report table 2, on every rank and from one micro batch on."""
    for micro_batches in counts_for(stages):
        bubbles = simulate("1f1b", stages, micro_batches, forward, backward).bubbles_s
        assert bubbles == [(stages - 1) * (forward + backward)] * stages


@pytest.mark.parametrize("stages", [*range(2, 7), 16])
@pytest.mark.parametrize(("forward", "backward"), [(1, 2), (1, 3), (2, 5)])
def test_the_bubble_of_dualpipev_beside_the_published_ones(
    stages: int, forward: int, backward: int
) -> None:
    """2 (P - 1) B - F on P ranks where B >= 2 F, whatever the number of micro batches.

    The table has (PP/2 - 1)(F&B + B - 3W) for PP = 2 P parts. Without overlap F&B is F + B; without
    the split W cannot fill a bubble, and 3W is not taken off. So ours lies between the table's
    figure with and without W, and below 1F1B's on the same ranks, whose parts are twice as long.
    """
    for micro_batches in (2 * stages, 2 * stages + 1, 5 * stages):
        bubbles = simulate("dualpipev", stages, micro_batches, forward, backward).bubbles_s
        assert bubbles == [2 * (stages - 1) * backward - forward] * stages
    weights = backward - forward  # W: half of a backward is for the weights where B = 2 F
    split = (stages - 1) * (forward + 2 * backward - 3 * weights)
    unsplit = (stages - 1) * (forward + 2 * backward)
    one_part = (stages - 1) * 2 * (forward + backward)
    assert split < bubbles[0] < unsplit < one_part


@pytest.mark.parametrize("stages", [2, 4, 16])
def test_fewer_micro_batches_than_parts_cost_dualpipev_little(stages: int) -> None:
    """From `stages` micro batches on the bubble is at most a forward longer than with enough.

    So the first steps of a ramp run as they are: a batch of 3072 over 128 ranks makes 24 of 32.
    """
    enough = simulate("dualpipev", stages, 2 * stages, 1, 2).bubbles_s[0]
    for micro_batches in range(stages, 2 * stages):
        few = simulate("dualpipev", stages, micro_batches, 1, 2).bubbles_s[0]
        assert enough <= few <= enough + 1
    assert simulate("dualpipev", stages, 1, 1, 2).bubbles_s[0] == 6 * (stages - 1)
