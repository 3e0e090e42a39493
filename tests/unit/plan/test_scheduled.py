"""Phases of every curve in steps and absolute values, against a walk over all steps."""

from itertools import groupby

import pytest

from dsv3.config.compose import compose
from dsv3.config.root import RunConfig
from dsv3.plan.scheduled import Scheduled, in_force, scheduled


def composed(*overrides: str) -> RunConfig:
    return compose(["model=moe_nano", *overrides]).config


def phase_of(curve: Scheduled, before: int, after: int, *, at_begin: bool) -> int:
    """Number of the phase a step belongs to, in whole numbers: where its tokens lie."""
    s = curve.schedule
    place = (before if at_begin else after) * s.reference_tokens
    ends = [phase.until * s.total_tokens for phase in curve.curve.phases[:-1]]
    return sum(place >= end if at_begin else place > end for end in ends)


@pytest.mark.parametrize("total", [1_000_000, 524_288, 30_000, 2_000, 1])
def test_the_steps_of_every_phase_are_those_of_a_walk(total: int) -> None:
    config = composed(f"schedule.total_tokens={total}", "mtp=depth1")
    s = config.schedule
    steps = [(s.tokens_before(n), s.tokens_before(n + 1)) for n in range(1, s.num_steps + 1)]
    for curve in scheduled(config):
        at_begin = curve.name == "batch_size"
        numbers = [phase_of(curve, *step, at_begin=at_begin) for step in steps]
        walked = {number: len(list(each)) for number, each in groupby(numbers)}
        stages = curve.stages()
        assert {n: stage.steps for n, stage in enumerate(stages) if stage.steps} == walked
        assert sum(stage.steps for stage in stages) == s.num_steps
        for number, stage in enumerate(stages):
            if stage.steps:
                assert stage.first_step == numbers.index(number) + 1


def test_phases_are_in_the_units_of_the_run() -> None:
    config = composed("schedule.total_tokens=1_000_000", "mtp=depth1")
    curves = {curve.name: curve.stages() for curve in scheduled(config)}
    assert list(curves) == ["lr", "batch_size", "bias_update_speed", "mtp_loss_coeff"]
    lr = curves["lr"]
    assert [stage.shape for stage in lr] == ["linear", "constant", "cosine", "constant", "constant"]
    assert [stage.end for stage in lr] == [20_000, 675_675, 966_216, 988_716, 1_000_000]
    assert [(stage.value_at_begin, stage.value_at_end) for stage in lr[:3]] == [
        (0.0, 0.004),
        (0.004, 0.004),
        (0.004, 0.0004),
    ]
    assert [(s.value_at_begin, s.value_at_end) for s in curves["batch_size"]] == [(4, 8), (8, 8)]
    assert [s.value_at_end for s in curves["bias_update_speed"]] == [0.003, 0.0]
    assert [s.value_at_end for s in curves["mtp_loss_coeff"]] == [0.3, 0.1]


def test_a_curve_without_phases_is_one_phase() -> None:
    [stage] = scheduled(compose(["model=moe_1b"]).config)[1].stages()
    assert (stage.first_step, stage.steps, stage.begin, stage.end) == (1, 40_000, 0, 94_371_840_000)
    assert stage.value_at_begin == stage.value_at_end == 1152


def test_points_are_what_a_step_uses_and_no_edge_is_missed() -> None:
    config = composed("mtp=depth1")
    for curve in scheduled(config):
        points = curve.points(7)
        for step, tokens, value in points:
            before = config.schedule.tokens_before(step)
            used = in_force(config, tokens_before=before, tokens_after=tokens)
            assert value == used[curve.name]
        steps = {point.step for point in points}
        assert {1, config.schedule.num_steps} <= steps
        for stage in curve.stages()[1:]:
            assert {stage.first_step - 1, stage.first_step} <= steps


def test_what_is_in_force_names_lambda_only_with_modules() -> None:
    off = in_force(composed(), tokens_before=0, tokens_after=512)
    assert list(off) == ["lr", "batch_size", "bias_update_speed"]
    none = in_force(composed("balance=none"), tokens_before=0, tokens_after=512)
    assert none["bias_update_speed"] == 0.0
    s = composed().schedule
    assert off["lr"] == s.lr_at(512), "what the engine is given, to the bit"
