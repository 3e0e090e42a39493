"""What policies remember: nothing of a refused step, everything else across a checkpoint."""

import json

import pytest

from dsv3.config.compose import compose
from dsv3.engine.engine import StepResult
from dsv3.train.policies import Policies, SpikeError

SKIPPING = compose(["health.on_spike=skip", "health.spike_window_steps=8"]).config.health


def result(loss, grad_norm=1.0):
    return StepResult({"objective": [loss], "lm": [loss]}, grad_norm)


def test_a_refused_value_never_enters_the_windows():
    policies = Policies(SKIPPING)
    for loss in (2.0, 2.1, 2.0):
        assert policies.judge(result(loss)) == []
    before = policies.state()
    with pytest.raises(SpikeError):
        policies.judge(result(2.0, 1e9))
    assert policies.state() == before


def test_left_out_steps_and_skips_go_through_the_checkpoint():
    policies = Policies(SKIPPING)
    policies.judge(result(2.0))
    policies.left_out_steps |= {12, 7}
    assert policies.count_skip()
    state = json.loads(json.dumps(policies.state()))
    again = Policies(SKIPPING, state)
    assert again.left_out_steps == {7, 12}
    assert again.state() == policies.state()
