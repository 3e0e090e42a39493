"""The position of a run, where its last step is, and every change of the schedule on the way."""

import math
from fractions import Fraction

import pytest

from dsv3.config.compose import compose
from dsv3.config.root import RunConfig
from dsv3.plan.scheduled import in_force
from dsv3.train.position import Position

T = 10**12  # the report counts in units of it


def walked(config: RunConfig) -> list[tuple[Position, Position]]:
    """Positions before and after every step of the run."""
    steps, position = [], Position()
    while position.tokens < config.schedule.total_tokens:
        after = position.after_step(config.schedule)
        steps.append((position, after))
        position = after
    return steps


def test_steps_add_up_to_the_schedule():
    config = compose(
        ["model=moe_nano", "schedule.total_tokens=10_001", "schedule.sequence_length=100"]
    ).config
    steps = walked(config)
    last = steps[-1][1]
    assert len(steps) == last.step == config.schedule.num_steps
    assert last.tokens == last.samples * 100
    assert steps[-1][0].tokens < 10_001 <= last.tokens


def test_state_round_trip():
    position = Position(3, 400, 8)
    assert Position.from_state(position.state()) == position


def report_lr(t: Fraction, *, warm_up: Fraction) -> float:
    """The report's learning rate as a fraction of its peak, at `t` of 14.8 trillion tokens."""
    if t <= warm_up:
        return float(t / warm_up)
    if t <= 10:
        return 1.0
    if t <= Fraction("14.3"):
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * float((t - 10) / Fraction("4.3"))))
    return 0.1 if t <= Fraction("14.633") else 7.3e-6 / 2.2e-4


def report_batch(t: Fraction, *, peak: int, quantum: int) -> int:
    """A fifth of the peak at first, the peak at 469 billion tokens, whole quanta."""
    share = min(Fraction(1), Fraction(1, 5) + Fraction(4, 5) * t / Fraction("0.469"))
    return max(1, math.floor(share * peak / quantum + Fraction(1, 2))) * quantum


@pytest.mark.parametrize("model", ["moe_nano", "moe_tiny"])
def test_a_million_tokens_walk_through_every_phase_of_the_report(model: str) -> None:
    config = compose([f"model={model}", "mtp=depth1", "schedule.total_tokens=1_000_000"]).config
    schedule, seen = config.schedule, set()
    for before, after in walked(config):
        begin = Fraction(before.tokens * 148, 10 * 1_000_000)  # in trillions of the report's tokens
        end = Fraction(after.tokens * 148, 10 * 1_000_000)
        values = in_force(config, tokens_before=before.tokens, tokens_after=after.tokens)
        # A cosine and a handful of products round; jumps are far larger than that.
        lr = schedule.lr * report_lr(end, warm_up=Fraction("0.296"))
        assert values["lr"] == pytest.approx(lr, rel=1e-12)
        batch = report_batch(begin, peak=8, quantum=schedule.batch_size_quantum)
        assert values["batch_size"] == batch == after.samples - before.samples
        gamma = config.balance.bias_update_speed
        assert values["bias_update_speed"] == (gamma if end <= Fraction("14.3") else 0.0)
        assert values["mtp_loss_coeff"] == (0.3 if end <= 10 else 0.1)
        phase = sum(end > each for each in map(Fraction, ("0.296", "10", "14.3", "14.633")))
        seen.add(("lr", phase))
        seen.add(("batch", batch))
    sizes = range(schedule.batch_size_quantum, 9, schedule.batch_size_quantum)
    assert seen == {("lr", n) for n in range(5)} | {("batch", n) for n in sizes}


@pytest.mark.parametrize(
    ("trillions", "lr", "batch", "gamma", "lambda_"),
    [
        ("0.02803263078400", 2.2e-4, 3840, 0.001, 0.3),  # the end of the warm-up
        ("0.2345", 2.2e-4, 9216, 0.001, 0.3),
        ("0.469", 2.2e-4, 15360, 0.001, 0.3),
        ("10", 2.2e-4, 15360, 0.001, 0.3),
        ("10.0001", 2.2e-4, 15360, 0.001, 0.1),
        ("12.15", 1.21e-4, 15360, 0.001, 0.1),
        ("14.3", 2.2e-5, 15360, 0.001, 0.1),
        ("14.3001", 2.2e-5, 15360, 0.0, 0.1),
        ("14.633", 2.2e-5, 15360, 0.0, 0.1),
        ("14.8", 7.3e-6, 15360, 0.0, 0.1),
    ],
)
def test_the_large_model_has_the_numbers_of_the_report(
    trillions: str, lr: float, batch: int, gamma: float, lambda_: float
) -> None:
    config = compose(["model=moe_671b", "mtp=depth1"]).config
    tokens = int(Fraction(trillions) * T)
    values = in_force(config, tokens_before=tokens, tokens_after=tokens)
    assert values["lr"] == pytest.approx(lr, rel=1e-8)
    assert (values["batch_size"], values["bias_update_speed"]) == (batch, gamma)
    assert values["mtp_loss_coeff"] == lambda_, "exactly, as it is printed"
    assert config.schedule.batch_size_at(0) == 3072
    assert config.schedule.lr_at(config.schedule.tokens_before(2001)) == 2.2e-4, "2000 steps"
    assert config.schedule.lr_at(config.schedule.tokens_before(2000)) < 2.2e-4
