"""Published figures come out, to the digit where they are arithmetic, with their gap elsewhere."""

import pytest

from dsv3.config.compose import compose
from dsv3.config.hardware import load_hardware
from dsv3.plan.cache import kv_cache_bytes_per_token
from dsv3.plan.flops import flops_by_part, training_flops_per_token
from dsv3.plan.methods import bubble_s, orders
from dsv3.plan.published import (
    BREAKDOWN,
    CHUNKS,
    MICRO_BATCHES,
    RANKS,
    Check,
    checks,
    chunk_times,
)


@pytest.fixture(scope="module")
def found() -> dict[str, Check]:
    every = checks(lambda words: compose(words).config, load_hardware("h800"))
    return {check.what: check for check in every}


def test_flops_parameters_and_cache_to_the_digit_printed(found: dict[str, Check]) -> None:
    printed = {name: round(check.planned) for name, check in found.items()}
    assert printed["V3: training FLOPs per token at 4096"] == 250
    assert printed["V2: training FLOPs per token at 4096"] == 155
    assert printed["V3: parameters"] == 671
    assert printed["V3: active parameters"] == 37
    assert kv_cache_bytes_per_token(compose(["model=moe_671b"]).config.model) == 70_272
    assert found["V3: cache per token"].gap == 0


def test_the_chunks_counted_are_those_of_the_first_rank() -> None:
    first = orders("dualpipe", RANKS, MICRO_BATCHES)[0]
    assert {kind: sum(work.kind == kind for work in first) for kind in CHUNKS} == CHUNKS


def test_chunk_times_give_the_published_sums_back() -> None:
    times = chunk_times()
    assert CHUNKS["F"] * times.forward == pytest.approx(BREAKDOWN.forward)
    assert CHUNKS["P"] * times.pair == pytest.approx(BREAKDOWN.pair)
    whole, inputs = CHUNKS["B"] * times.backward, CHUNKS["I"] * (times.backward - times.weights)
    assert whole + inputs == pytest.approx(BREAKDOWN.backward)
    assert bubble_s("dualpipe", RANKS, times) == pytest.approx(1.0864, abs=1e-4)


def test_the_step_is_six_per_cent_short_all_of_it_bubble(found: dict[str, Check]) -> None:
    """The published bubble is twice that of the schedule; the rest of the step agrees."""
    step, bubble = found["step, simulated from its chunk times"], found["bubble, simulated"]
    assert step.gap == pytest.approx(-0.0565, abs=5e-4)
    assert bubble.gap == pytest.approx(-0.533, abs=5e-3)
    missing = bubble.published - bubble.planned
    assert step.planned + missing == pytest.approx(step.published, rel=2e-3)


def test_hours_and_price_from_the_published_utilisation(found: dict[str, Check]) -> None:
    how = "from ISCA's utilisation and the peak"
    for name in (
        f"GPU-hours per trillion tokens, {how}",
        f"GPU-hours of pre-training, {how}",
        f"cost of pre-training at $2, {how}",
    ):
        assert found[name].gap == pytest.approx(0.0032, abs=1e-4)


def test_from_peaks_alone_the_plan_is_a_tenth_too_fast(found: dict[str, Check]) -> None:
    hours = found["GPU-hours per trillion tokens, from peaks x 0.5, overlapped"]
    assert hours.gap == pytest.approx(-0.095, abs=5e-3)


def test_flops_by_part_add_up() -> None:
    for name in ("moe_671b", "moe_228b", "moe_16b", "moe_nano"):
        model = compose([f"model={name}"]).config.model
        parts = flops_by_part(model, sequence_length=4096)
        assert sum(parts.values()) == training_flops_per_token(model, sequence_length=4096)
        assert all(part > 0 for part in parts.values())
