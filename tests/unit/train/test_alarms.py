"""Alarms against a plain re-reading of the whole history, across kills at any step."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3.config.compose import compose
from dsv3.train.alarms import RULES, Alarm, Alarms
from dsv3.train.load import take_load
from unit.train.fake_layers import layer, model_of

EXPERTS = 4
SHIPPED = compose([]).config.health


def health(window_steps=5, entropy=0.5, spread=1.0, saturation=0.9):
    limits = {
        "window_steps": window_steps,
        "lowest_load_entropy": entropy,
        "largest_bias_spread": spread,
        "largest_saturation": saturation,
    }
    return SHIPPED.model_copy(update=limits)


class Run:
    """Layers that are given counts and biases step by step, and the alarms that come of it."""

    def __init__(self, limits, layers=2):
        self.layers = model_of(*(layer([0] * EXPERTS) for _ in range(layers)))
        self.limits, self.step = limits, 0
        self.alarms = Alarms(limits, self.layers)

    def make_step(self, *of_layers):
        """A step; a layer is (tokens per expert, saturated scores, biases)."""
        for moe, (tokens, saturated, bias) in zip(self.layers.values(), of_layers, strict=True):
            moe.tokens_per_expert_E += torch.tensor(tokens)
            moe.saturated_scores += saturated
            moe.router.e_score_correction_bias.copy_(torch.tensor(bias))
        self.step += 1
        return self.alarms.after_step(self.step, take_load(self.layers))

    def kill_and_resume(self, limits=None):
        """Forget everything that is not in the checkpoint's JSON or in the model."""
        state = json.loads(json.dumps(self.alarms.state()))
        self.alarms = Alarms(self.limits if limits is None else limits, self.layers, state)


def even(saturated=0, spread=0.0):
    return [1] * EXPERTS, saturated, [spread] + [0.0] * (EXPERTS - 1)


def steps(run, count, *of_layers):
    return [alarm for _ in range(count) for alarm in run.make_step(*of_layers)]


# --- the oracle --------------------------------------------------------------------------------


def figures_of(window, index):
    """What a window says of a layer, from the counts of its steps."""
    tokens = [sum(step[index][0][expert] for step in window) for expert in range(EXPERTS)]
    total = sum(tokens)
    shares = [count / total for count in tokens if count > 0]
    bias = window[-1][index][2]
    return {
        "collapse": -sum(p * math.log(p) for p in shares) / math.log(EXPERTS),
        "dead_expert": tokens.count(0),
        "bias_runaway": max(bias) - min(bias),
        "saturation": sum(step[index][1] for step in window) / (total * EXPERTS),
    }


def expected_alarms(history, limits):
    """Every (step, kind, layer, begins), from all steps at once."""
    size, found, before = limits.window_steps, set(), set()
    for end in range(size, len(history) + 1, size):
        now = set()
        for index in range(len(history[0])):
            values = figures_of(history[end - size : end], index)
            bad = {
                "collapse": values["collapse"] < limits.lowest_load_entropy,
                "dead_expert": values["dead_expert"] > 0,
                "bias_runaway": values["bias_runaway"] > limits.largest_bias_spread,
                "saturation": values["saturation"] > limits.largest_saturation,
            }
            now |= {(kind, index + 1) for kind, is_bad in bad.items() if is_bad}
        found |= {(end, kind, number, True) for kind, number in now - before}
        found |= {(end, kind, number, False) for kind, number in before - now}
        before = now
    return found


def as_set(alarms):
    return {(a.step, a.alarm, number, a.begins) for a in alarms for number in a.layers}


eighths = st.integers(-8, 8).map(lambda n: n / 8)  # exact in FP32
of_a_layer = st.tuples(
    st.lists(st.sampled_from([0, 0, 0, 1, 5]), min_size=EXPERTS, max_size=EXPERTS).filter(any),
    st.integers(0, 12),
    st.lists(eighths, min_size=EXPERTS, max_size=EXPERTS),
)
histories = st.lists(st.tuples(of_a_layer, of_a_layer), min_size=1, max_size=16)
# 0.7153 and 0.6217: no window of these counts has that very entropy or saturation.
limits = st.integers(1, 5).map(lambda n: health(n, entropy=0.7153, spread=1.1, saturation=0.6217))


@settings(deadline=None)
@given(histories, limits, st.sets(st.integers(0, 16)))
def test_alarms_are_those_of_the_history_however_often_the_run_is_killed(history, limits, kills):
    run, alarms = Run(limits), []
    for step in history:
        if run.step in kills:
            run.kill_and_resume()
        alarms += run.make_step(*step)
    assert as_set(alarms) == expected_alarms(history, limits)
    for alarm in alarms:
        window = history[alarm.step - limits.window_steps : alarm.step]
        values = [figures_of(window, number - 1)[alarm.alarm] for number in alarm.layers]
        worst = min(values) if alarm.alarm == "collapse" else max(values)
        assert alarm.value == pytest.approx(worst, abs=1e-12)


@settings(deadline=None)
@given(histories, limits, st.integers(0, 16))
def test_a_resumed_run_raises_the_very_same_alarms(history, limits, kill):
    plain, cut = Run(limits), Run(limits)
    for step in history:
        if cut.step == kill:
            cut.kill_and_resume()
        assert cut.make_step(*step) == plain.make_step(*step)
    assert cut.alarms.state() == plain.alarms.state()


# --- one kind after the other --------------------------------------------------------------------


def test_collapse_names_the_layer_and_the_value_once():
    run = Run(health(entropy=0.6))
    uneven = ([97, 1, 1, 1], 0, [0.0] * 4)
    [alarm] = steps(run, 20, even(), uneven)
    assert (alarm.alarm, alarm.event, alarm.step) == ("collapse", "alarm", 5)
    assert (alarm.layers, alarm.limit) == ([2], 0.6)
    assert alarm.value == pytest.approx(figures_of([[even(), uneven]], 1)["collapse"])
    [over] = steps(run, 20, even(), even())
    assert (over.alarm, over.event, over.step, over.value) == ("collapse", "alarm_over", 25, 1)


def test_an_expert_is_dead_only_if_no_step_of_the_window_used_it():
    run, three = Run(health(), layers=1), ([1, 1, 1, 0], 0, [0.0] * 4)
    quiet = [
        steps(run, 4, three),
        steps(run, 1, even()),
        steps(run, 1, even()),
        steps(run, 4, three),
    ]
    assert quiet == [[], [], [], []]
    [alarm] = steps(run, 5, three)
    assert (alarm.alarm, alarm.value, alarm.limit) == ("dead_expert", 1, 0)


def test_a_bias_that_runs_away_is_seen_by_its_spread_not_by_its_drift():
    run = Run(health(), layers=1)
    drifted = ([1] * 4, 0, [7.0, 7.5, 7.5, 7.5])
    assert steps(run, 5, drifted) == []
    [alarm] = steps(run, 5, even(spread=1.5))
    assert (alarm.alarm, alarm.value) == ("bias_runaway", 1.5)


def test_saturation_is_a_fraction_of_all_scores():
    stuck = even(saturated=16)
    [alarm] = steps(Run(health(), layers=1), 5, stuck)
    assert (alarm.alarm, alarm.value) == ("saturation", 1)
    assert steps(Run(health(), layers=1), 5, even(saturated=14)) == []  # 0.875


def test_a_bias_that_stands_still_is_no_alarm():
    # gamma is 0 at the end of the report's schedule, and always under `none`.
    for spread in (0.0, 0.5):
        assert steps(Run(health(), layers=1), 50, even(spread=spread)) == []


def test_a_figure_at_its_limit_is_still_good():
    run = Run(health(entropy=1.0, spread=0.5, saturation=0.25), layers=1)
    assert steps(run, 5, even(saturated=4, spread=0.5)) == []


# --- windows ---------------------------------------------------------------------------------


def test_the_rest_of_a_window_of_another_length_is_not_judged():
    run = Run(health(window_steps=5), layers=1)
    three = ([1, 1, 1, 0], 0, [0.0] * 4)
    assert steps(run, 4, three) == []
    run.kill_and_resume(health(window_steps=3))
    # Step 6 ends a window whose first step was counted under the old length.
    assert steps(run, 4, three) == []
    assert [alarm.step for alarm in steps(run, 1, three)] == [9]


def test_a_model_without_experts_raises_nothing():
    alarms = Alarms(health(window_steps=1), {})
    assert alarms.after_step(1, take_load({})) == []
    state = json.loads(json.dumps(alarms.state()))
    assert Alarms(health(window_steps=1), {}, state).state() == state


def test_counts_that_no_float_holds_survive_a_resume():
    big = 2**53 + 1
    run = Run(health(window_steps=2), layers=1)
    run.make_step(([big, 1, 1, 1], big, [0.0] * 4))
    run.kill_and_resume()
    [tokens], _, [saturated] = run.alarms.state()["counts"]
    assert (tokens[0], saturated) == (big, big)


@pytest.mark.parametrize("alarm", RULES)
def test_a_line_says_what_where_and_how_much(alarm):
    text = str(Alarm(alarm, True, 50, [3, 4], 0.25, 0.5))
    side = "below" if alarm == "collapse" else "above"
    assert text.startswith(f"step 50: alarm {alarm} in layers 3, 4: ")
    assert text.endswith(f" 0.25, {side} 0.5")


@pytest.mark.parametrize("skipped", [2, 5])
def test_a_window_with_a_skipped_step_is_not_judged_and_the_next_one_is(skipped):
    run = Run(health(entropy=0.99))
    one_has_all = [EXPERTS, 0, 0, 0], 0, [0.0] * EXPERTS
    found = []
    for step in range(1, 11):
        if step == skipped:
            run.step += 1
            run.alarms.skip(step)
        else:
            found += [
                (alarm.alarm, alarm.step) for alarm in run.make_step(one_has_all, one_has_all)
            ]
    assert {step for _, step in found} == {10}
    assert ("collapse", 10) in found
