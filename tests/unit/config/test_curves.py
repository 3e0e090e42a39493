"""Curves against their formulas, and the convention of the step: it takes the value at its end."""

import math
from fractions import Fraction

import pytest
from pydantic import ValidationError

from dsv3.config.curves import Curve
from dsv3.config.schedule import ScheduleConfig


def curve(start: float, *phases: tuple[int, str, float]) -> Curve:
    fields = ("until", "shape", "value")
    return Curve.model_validate(
        {"start": start, "phases": [dict(zip(fields, phase, strict=True)) for phase in phases]}
    )


def schedule(lr_curve: Curve, *, total: int = 1000, reference: int = 1000) -> ScheduleConfig:
    return ScheduleConfig(
        total_tokens=total,
        reference_tokens=reference,
        sequence_length=10,
        global_batch_size=1,
        batch_size_quantum=1,
        micro_batch_size=1,
        lr=2.0,
        lr_curve=lr_curve,
        bias_update_speed_curve=curve(1.0, (900, "constant", 1.0), (1000, "constant", 0.0)),
        batch_size_curve=curve(1.0),
        mtp_loss_coeff_curve=curve(1.0, (700, "constant", 1.0), (1000, "constant", 0.5)),
    )


def test_a_warm_up_rises_in_a_straight_line() -> None:
    warm_up = curve(0.0, (100, "linear", 1.0))
    assert [warm_up.at(t) for t in range(101)] == [t / 100 for t in range(101)]


def test_ends_are_exact_for_every_shape() -> None:
    for shape in ("linear", "cosine", "constant"):
        piece = curve(0.3, (70, shape, 0.7))
        assert piece.at(0) == 0.3
        # One rounding of 0.3 + (0.7 - 0.3).
        assert piece.at(70) == pytest.approx(0.7, rel=1e-15)
        assert piece.at(71) == 0.7


def test_a_cosine_is_half_way_in_the_middle_and_flat_at_its_ends() -> None:
    decay = curve(1.0, (1000, "cosine", 0.2))
    assert decay.at(500) == pytest.approx(0.6, rel=1e-15)
    for t in (1, 250, 640, 999):
        assert decay.at(t) == pytest.approx(
            0.2 + 0.8 * math.cos(math.pi * t / 2000) ** 2, rel=1e-14
        )
    assert 1 - decay.at(1) < 1e-5 and decay.at(999) - 0.2 < 1e-5


def test_a_constant_jumps_and_holds() -> None:
    steps = curve(1.0, (10, "constant", 0.5), (20, "constant", 0.25))
    assert [steps.at(t) for t in (0, 1, 10, 11, 20, 21, 10**15)] == [
        1,
        0.5,
        0.5,
        0.25,
        0.25,
        0.25,
        0.25,
    ]


def test_beyond_the_end_of_a_phase_is_the_next_one() -> None:
    steps = curve(1.0, (10, "constant", 0.5), (20, "linear", 0.25))
    assert [steps.beyond(t) for t in (0, 9, 10, 15, 20, 10**15)] == [
        0.5,
        0.5,
        0.5,
        0.375,
        0.25,
        0.25,
    ]
    jump = curve(0.2, (10, "constant", 0.2), (20, "constant", 1.0))
    assert (jump.at(10), jump.beyond(10)) == (0.2, 1.0)
    assert curve(0.7).beyond(0) == curve(0.7).beyond(5) == 0.7


def test_a_phase_starts_where_the_one_before_ended() -> None:
    both = curve(0.0, (100, "linear", 1.0), (300, "cosine", 0.0))
    assert both.at(100) == 1.0
    assert both.at(200) == pytest.approx(0.5, rel=1e-15)


def test_without_phases_the_start_holds() -> None:
    assert curve(0.7).at(0) == curve(0.7).at(10**12) == 0.7


def test_phases_out_of_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="until=5 follows until=10"):
        curve(1.0, (10, "constant", 1.0), (5, "constant", 1.0))


def test_the_first_step_of_a_warm_up_has_a_learning_rate() -> None:
    config = schedule(curve(0.0, (100, "linear", 1.0)))
    assert config.lr_at(config.peak_tokens_per_step) == pytest.approx(2.0 * 0.1, rel=1e-15)
    assert config.lr_at(100) == 2.0


def test_the_step_that_ends_a_phase_still_belongs_to_it() -> None:
    config = schedule(curve(1.0, (600, "constant", 1.0), (1000, "constant", 0.1)))
    assert [config.lr_at(t) for t in (590, 600, 610, 1000)] == [2.0, 2.0, 0.2, 0.2]
    assert [config.fraction_at(config.bias_update_speed_curve, t) for t in (900, 910, 1000)] == [
        1.0,
        0.0,
        0.0,
    ]
    assert [config.fraction_at(config.mtp_loss_coeff_curve, t) for t in (700, 710, 1000)] == [
        1.0,
        0.5,
        0.5,
    ]


@pytest.mark.parametrize("total", [1, 7, 999, 3000, 123_456_789])
def test_the_axis_is_stretched_and_the_values_are_not(total: int) -> None:
    shape = curve(0.0, (100, "linear", 1.0), (600, "constant", 1.0), (1000, "cosine", 0.1))
    config = schedule(shape, total=total)
    for part in range(21):
        tokens = total * part // 20
        # Exact arithmetic places the token; the curve itself rounds a few times.
        expected = 2.0 * shape.at(float(Fraction(1000 * tokens, total)))
        assert config.lr_at(tokens) == pytest.approx(expected, rel=1e-14)
    assert config.lr_at(total) == pytest.approx(0.2, rel=1e-15)


def test_stretching_does_not_end_a_phase_by_rounding() -> None:
    # 600/1000 of each length: where the division comes first, some of these land beyond 600.
    shape = curve(1.0, (600, "constant", 1.0), (1000, "constant", 0.1))
    for total in range(5, 50_000, 5):
        config = schedule(shape, total=total)
        assert config.on_reference_axis(total * 3 // 5) == 600
        assert config.lr_at(total * 3 // 5) == 2.0
