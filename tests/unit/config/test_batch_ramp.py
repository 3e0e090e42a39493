"""The batch ramp against a plain walk over all steps, and the cut of a share into micro batches."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3.config.compose import compose
from dsv3.config.schedule import ScheduleConfig

CONSTANT = {"start": 1.0, "phases": []}


def schedule(
    curve: dict, *, total: int, peak: int, quantum: int, length: int = 4
) -> ScheduleConfig:
    return ScheduleConfig(
        total_tokens=total,
        reference_tokens=1000,
        sequence_length=length,
        global_batch_size=peak,
        batch_size_quantum=quantum,
        micro_batch_size=4,
        lr=1.0,
        lr_curve=CONSTANT,
        bias_update_speed_curve=CONSTANT,
        batch_size_curve=curve,
        mtp_loss_coeff_curve=CONSTANT,
    )


def ramp(start: float, until: int, shape: str = "linear") -> dict:
    phases = [
        {"until": until, "shape": shape, "value": 1.0},
        {"until": 1000, "shape": "constant", "value": 1.0},
    ]
    return {"start": start, "phases": phases}


def plain_walk(config: ScheduleConfig) -> list[tuple[int, int]]:
    """Sequences and tokens before of every step, one step after the other."""
    steps, tokens = [], 0
    while tokens < config.total_tokens:
        size = config.batch_size_at(tokens)
        steps.append((size, tokens))
        tokens += size * config.sequence_length
    return steps


def test_the_batch_is_the_nearest_multiple_at_the_beginning_of_the_step() -> None:
    config = schedule(ramp(0.2, 400), total=100_000, peak=40, quantum=8)
    for tokens in range(0, 100_000, 37):
        exact = min(Fraction(1), Fraction(1, 5) + Fraction(4, 5) * Fraction(tokens, 40_000)) * 40
        below = exact // 8 * 8
        nearest = below if exact - below < 4 else below + 8
        if abs(exact - below - 4) > Fraction(1, 10**9):  # ties are where floats may differ
            assert config.batch_size_at(tokens) == max(8, nearest), tokens


def test_the_batch_is_never_below_a_quantum_nor_above_the_peak() -> None:
    config = schedule(ramp(0.0, 400), total=1000, peak=40, quantum=8)
    assert config.batch_size_at(0) == 8
    too_high = {"start": 3.0, "phases": []}
    assert schedule(too_high, total=1000, peak=40, quantum=8).batch_size_at(5) == 40


def test_a_step_that_begins_where_a_phase_ends_has_the_batch_of_the_next() -> None:
    jump = {
        "start": 0.25,
        "phases": [
            {"until": 320, "shape": "constant", "value": 0.25},
            {"until": 1000, "shape": "constant", "value": 1.0},
        ],
    }
    config = schedule(jump, total=1000, peak=8, quantum=2)
    assert [config.batch_size_at(t) for t in (0, 312, 319, 320, 328)] == [2, 2, 2, 8, 8]


@settings(max_examples=150, deadline=None)
@given(
    start=st.floats(0, 1.5),
    turns=st.lists(
        st.tuples(st.sampled_from(["linear", "cosine", "constant"]), st.floats(0, 1.5)),
        max_size=3,
    ),
    total=st.integers(1, 6000),
    quanta=st.integers(1, 40),
    quantum=st.integers(1, 4),
    length=st.integers(2, 5),
)
def test_stretches_are_the_steps_of_a_plain_walk(
    start: float, turns: list, total: int, quanta: int, quantum: int, length: int
) -> None:
    phases = [
        {"until": 1000 * (place + 1) // len(turns), "shape": shape, "value": value}
        for place, (shape, value) in enumerate(turns)
    ]
    curve = {"start": start, "phases": phases}
    config = schedule(curve, total=total, peak=quanta * quantum, quantum=quantum, length=length)
    walked = plain_walk(config)
    unrolled = [
        (stretch.batch_size, stretch.tokens_before + number * stretch.batch_size * length)
        for stretch in config.stretches
        for number in range(stretch.steps)
    ]
    assert unrolled == walked
    assert config.num_steps == len(walked)
    assert [config.tokens_before(n + 1) for n in range(len(walked))] == [t for _, t in walked]
    assert config.tokens_before(len(walked) + 1) >= total > walked[-1][1]


def test_a_short_dip_is_not_leapt_over() -> None:
    dip = [(500, 1.0), (510, 0.25), (1000, 1.0)]
    phases = [{"until": until, "shape": "constant", "value": value} for until, value in dip]
    config = schedule({"start": 1.0, "phases": phases}, total=10_000, peak=8, quantum=2)
    walked = plain_walk(config)
    assert {size for size, _ in walked} == {2, 8}
    assert config.num_steps == len(walked)


@pytest.mark.parametrize("model", ["moe_671b", "moe_228b"])
def test_the_long_ramps_are_counted_right(model: str) -> None:
    config = compose([f"model={model}"]).config.schedule
    assert config.num_steps == len(plain_walk(config))
    assert len(config.stretches) < 60, (
        "a stretch is many steps, or counting takes as long as a walk"
    )


def test_the_ramp_does_not_know_the_layout() -> None:
    def sizes(*overrides: str) -> list[int]:
        config = compose(["model=moe_671b", *overrides]).config.schedule
        return [config.batch_size_at(n * 10**9) for n in range(0, 500, 7)]

    assert sizes() == sizes("parallelism=single") == sizes("schedule.micro_batch_size=2")


@pytest.mark.parametrize("largest", [1, 2, 3, 4, 8, 100])
def test_a_share_is_cut_into_equal_micro_batches_as_large_as_allowed(largest: int) -> None:
    config = schedule(CONSTANT, total=10, peak=8, quantum=8)
    config = config.model_copy(update={"micro_batch_size": largest})
    for share in range(1, 50):
        fitting = [size for size in range(1, largest + 1) if math.gcd(share, size) == size]
        assert config.micro_batch_size_of(share) == max(fitting)


@pytest.mark.parametrize("largest", [1, 3, 8])
@pytest.mark.parametrize("at_least", [1, 2, 5, 12])
def test_a_share_makes_as_many_micro_batches_as_a_pipeline_wants(
    largest: int, at_least: int
) -> None:
    config = schedule(CONSTANT, total=10, peak=8, quantum=8)
    config = config.model_copy(update={"micro_batch_size": largest})
    for share in range(1, 50):
        cuts = [size for size in range(1, largest + 1) if share % size == 0]
        fitting = [size for size in cuts if share // size >= at_least]
        assert config.micro_batch_size_of(share, at_least=at_least) == max(fitting, default=1)
        assert (share < at_least) == (fitting == [])


@pytest.mark.parametrize(
    ("layout", "micro_batches"),
    [("single", 1), ("pp2", 2), ("pp4", 4), ("pp2_ep2", 2)],
)
def test_a_pipeline_cuts_its_step_into_one_micro_batch_for_each_part(
    layout: str, micro_batches: int
) -> None:
    base = ["model=moe_tiny", "schedule.micro_batch_size=16", f"parallelism={layout}"]
    batch = ["schedule.global_batch_size=16"]
    config = compose([*base, *batch]).config
    assert config.gradient_accumulation_steps == micro_batches
    if layout != "single":
        v = compose(
            [*base, *batch, "parallelism.pipeline_schedule=dualpipev", "model.num_hidden_layers=8"]
        )
        assert v.config.gradient_accumulation_steps == 2 * micro_batches
