"""Windows for spikes: against a plain re-reading of the accepted values, and across checkpoints."""

import json
import math
import random
import statistics

import pytest

from dsv3.config.compose import compose
from dsv3.train.spikes import Spikes

SHIPPED = compose([]).config.health
WINDOW = 16


def health(**values):
    return SHIPPED.model_copy(update={"spike_window_steps": WINDOW, **values})


def figures(loss, grad_norm=1.0):
    return {"loss": loss, "grad_norm": grad_norm}


def fed(values, **limits):
    spikes = Spikes(health(**limits))
    for loss in values:
        spikes.accept(figures(loss))
    return spikes


# --- the oracle: the whole history, median by sorting ---


def limit_of(history, deviations, smallest):
    window = history[-WINDOW:]
    if len(window) < WINDOW // 4:
        return math.inf
    median = statistics.median(window)
    mad = statistics.median(abs(value - median) for value in window)
    return median + deviations * max(1.4826 * mad, smallest)


@pytest.mark.parametrize("seed", range(3))
def test_limits_are_those_of_the_accepted_values(seed):
    draw, spikes = random.Random(seed), Spikes(health(spike_deviations=3.0))
    losses, norms, found = [], [], 0
    for _ in range(300):
        loss = draw.choice([draw.gauss(3, 0.1), draw.gauss(3, 1), math.nan, math.inf, -math.inf])
        norm = draw.choice([draw.lognormvariate(0, 1), draw.lognormvariate(0, 9), math.nan, 0.0])
        limits = {
            "loss": limit_of(losses, 3.0, 0.02),
            "grad_norm": limit_of(norms, 3.0, math.log(2)),
        }
        expected = {"loss": loss > limits["loss"]}
        expected["grad_norm"] = norm > 0 and math.log(norm) > limits["grad_norm"]
        spiked = {spike.figure: spike for spike in spikes.find(figures(loss, norm))}
        assert spiked.keys() == {figure for figure, is_one in expected.items() if is_one}
        for figure, spike in spiked.items():
            limit = limits[figure] if figure == "loss" else math.exp(limits[figure])
            assert spike.limit == pytest.approx(limit, rel=1e-12)
        found += len(spiked)
        if draw.random() < 0.7:
            spikes.accept(figures(loss, norm))
            losses += [loss] if math.isfinite(loss) else []
            norms += [math.log(norm)] if math.isfinite(norm) and norm > 0 else []
    assert found > 30


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_poisons_no_window(bad):
    spikes, clean = fed([2.0, 2.1] * 8), fed([2.0, 2.1] * 8)
    spikes.accept(figures(bad, bad))
    assert spikes.state() == clean.state()
    assert spikes.find(figures(2.2)) == []
    assert [spike.figure for spike in spikes.find(figures(9.0, 1e4))] == ["loss", "grad_norm"]


def test_nothing_is_judged_before_a_quarter_of_the_window():
    assert fed([2.0] * (WINDOW // 4 - 1)).find(figures(1e9, 1e9)) == []
    assert len(fed([2.0] * (WINDOW // 4)).find(figures(1e9, 1e9))) == 2


def test_a_fall_is_no_spike():
    assert fed([5.0, 5.1] * 8).find(figures(0.01, 1e-9)) == []


def test_a_rounding_error_on_a_flat_curve_is_no_spike():
    assert fed([2.0] * WINDOW).find(figures(2.0 + 1e-6, 1.001)) == []


def test_state_restores_every_bit_through_json():
    spikes = fed([draw / 7 for draw in range(40)])
    state = json.loads(json.dumps(spikes.state()))
    again = Spikes(health(), state)
    assert again.state() == spikes.state()
    for one in (spikes, again):
        one.accept(figures(1 / 3))
    assert again.state() == spikes.state()
    assert len(again.state()["loss"]) == WINDOW
