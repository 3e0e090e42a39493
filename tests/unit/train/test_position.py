"""The position of a run, and where its last step is."""

from dsv3.config.compose import compose
from dsv3.train.position import Position


def test_steps_add_up_to_the_schedule():
    schedule = compose(
        ["model=moe_nano", "schedule.total_tokens=10_001", "schedule.sequence_length=100"]
    ).config.schedule
    position, steps = Position(), 0
    while position.tokens < schedule.total_tokens:
        position, steps = position.after_step(schedule), steps + 1
    assert steps == schedule.num_steps
    assert position.step == steps
    assert position.samples == steps * schedule.global_batch_size
    assert position.tokens - schedule.tokens_per_step < schedule.total_tokens <= position.tokens


def test_state_round_trip():
    position = Position(3, 400, 8)
    assert Position.from_state(position.state()) == position
