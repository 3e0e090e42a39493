"""Every figure of the load against plain Python that walks over tokens, in exact fractions."""

import json
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3.train.load import (
    PER_LAYER,
    Load,
    dead_experts,
    load_entropy,
    load_figures,
    load_record,
    max_violation,
    take_load,
)
from unit.train.fake_layers import layer, model_of

# Counts are integers: what is compared differs by a few roundings of FP64.
EXACT = 1e-12

loads = st.lists(st.integers(0, 10**6), min_size=1, max_size=40).filter(any)


def violation_of(load):
    """MaxVio, an exact fraction."""
    mean = Fraction(sum(load), len(load))
    return (max(load) - mean) / mean


def entropy_of(load):
    shares = [count / sum(load) for count in load if count > 0]
    return math.fsum(-share * math.log(share) for share in shares) / math.log(len(load))


def int64(load):
    return torch.tensor(load, dtype=torch.int64)


# --- one layer ---------------------------------------------------------------------------------


@given(loads)
def test_violation_is_the_largest_load_over_the_mean(load):
    assert max_violation(int64(load)) == pytest.approx(float(violation_of(load)), abs=EXACT)


@given(loads.filter(lambda load: len(load) > 1))
def test_entropy_is_a_fraction_of_the_even_loads(load):
    assert load_entropy(int64(load)) == pytest.approx(entropy_of(load), abs=EXACT)


@given(loads)
def test_dead_experts_have_no_token(load):
    assert dead_experts(int64(load)) == sum(1 for count in load if count == 0)


@given(st.integers(1, 300), st.integers(1, 10**9))
def test_an_even_load_has_no_violation_and_full_entropy(experts, tokens):
    load_E = int64([tokens] * experts)
    assert max_violation(load_E) == 0
    assert load_entropy(load_E) == pytest.approx(1, abs=EXACT)
    assert dead_experts(load_E) == 0


@given(st.integers(2, 300), st.integers(1, 10**9), st.data())
def test_one_expert_with_everything_is_the_worst_load(experts, tokens, data):
    load = [0] * experts
    load[data.draw(st.integers(0, experts - 1))] = tokens
    assert max_violation(int64(load)) == experts - 1
    assert load_entropy(int64(load)) == 0
    assert dead_experts(int64(load)) == experts - 1


def test_a_load_beyond_float64s_integers_is_still_told_from_an_even_one():
    # 2**53 + 1 is 2**53 in FP64.
    assert max_violation(int64([2**53 + 1, 2**53, 2**53])) > 0


def test_no_load_violates_nothing_and_is_even():
    nothing_E = int64([0, 0, 0])
    assert (max_violation(nothing_E), load_entropy(nothing_E)) == (0, 1)
    assert dead_experts(nothing_E) == 3


# --- a step ------------------------------------------------------------------------------------


class Routed:
    """A batch routed at random, kept token by token, and what its layer counts of it."""

    def __init__(self, draw, experts, top_k, sequences, length):
        self.experts, self.top_k = experts, top_k
        weights = [draw.random() ** 4 for _ in range(experts)]  # some experts are rarely chosen
        self.sequences = [
            [
                sorted(range(experts), key=lambda e: draw.random() * weights[e])[-top_k:]
                for _ in range(length)
            ]
            for _ in range(sequences)
        ]
        self.saturated = draw.randrange(sequences * length * experts + 1)
        self.bias = [draw.uniform(-1, 1) for _ in range(experts)]

    def counts(self, sequences):
        return [
            sum(chosen.count(expert) for sequence in sequences for chosen in sequence)
            for expert in range(self.experts)
        ]

    def layer(self):
        return layer(
            self.counts(self.sequences),
            peaks=sum(max(self.counts([sequence])) for sequence in self.sequences),
            saturated=self.saturated,
            top_k=self.top_k,
            bias=self.bias,
        )

    def figures(self):
        load = self.counts(self.sequences)
        mean = Fraction(sum(load), self.experts)
        of_sequences = [violation_of(self.counts([sequence])) for sequence in self.sequences]
        tokens = sum(len(sequence) for sequence in self.sequences)
        bias = torch.tensor(self.bias).tolist()  # as FP32 holds it
        return {
            "max_violation": violation_of(load),
            "max_violation_sequence": sum(of_sequences) / len(of_sequences),
            "relative_load_max": max(load) / mean,
            "relative_load_min": min(load) / mean,
            "load_entropy": entropy_of(load),
            "dead_experts": load.count(0),
            "bias_min": min(bias),
            "bias_max": max(bias),
            "bias_spread": max(bias) - min(bias),
            "bias_mean": math.fsum(bias) / self.experts,
            "score_saturation": Fraction(self.saturated, tokens * self.experts),
        }


@st.composite
def batches(draw):
    """The same batch through one to three layers."""
    experts = draw(st.integers(2, 9))
    top_k = draw(st.integers(1, experts))
    sequences, length = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    random = draw(st.randoms(use_true_random=False))
    count = draw(st.integers(1, 3))
    return [Routed(random, experts, top_k, sequences, length) for _ in range(count)]


@settings(deadline=None)
@given(batches())
def test_every_figure_of_every_layer(batch):
    layers = model_of(*(routed.layer() for routed in batch))
    bias_LE = torch.stack([moe.router.e_score_correction_bias for moe in layers.values()])
    figures = load_figures(take_load(layers), bias_LE)
    for index, routed in enumerate(batch):
        expected = {name: float(value) for name, value in routed.figures().items()}
        ours = {name: of_layers[index] for name, of_layers in figures.items()}
        assert ours == pytest.approx(expected, abs=EXACT)


@settings(deadline=None)
@given(batches())
def test_a_line_sums_up_its_layers(batch):
    layers = model_of(*(routed.layer() for routed in batch), first=7)
    record = load_record(take_load(layers), layers)
    expected = [routed.figures() for routed in batch]
    means = {
        name: float(sum(of_layer[name] for of_layer in expected) / len(batch))
        for name in expected[0]
    }
    means["dead_experts"] = sum(of_layer["dead_experts"] for of_layer in expected)
    means["bias_min"] = min(of_layer["bias_min"] for of_layer in expected)
    means["bias_max"] = max(of_layer["bias_max"] for of_layer in expected)
    assert {name: record[name] for name in means} == pytest.approx(means, abs=EXACT)
    for name in PER_LAYER:
        by_layer = {str(7 + i): float(of_layer[name]) for i, of_layer in enumerate(expected)}
        # Six digits are written.
        assert record[f"{name}_per_layer"] == pytest.approx(by_layer, rel=5e-6, abs=EXACT)


def test_taking_the_load_starts_every_counter_over_and_keeps_a_copy():
    moe = layer([3, 1], peaks=3, saturated=2)
    load = take_load(model_of(moe))
    counters = (moe.tokens_per_expert_E, moe.sequence_peaks)
    assert not any(counter.any() for counter in (*counters, moe.saturated_scores))
    moe.tokens_per_expert_E += 9
    assert load.tokens_per_expert["model.layers.1.mlp"].tolist() == [3, 1]
    assert load.sequence_peaks_L.tolist() == [3]
    assert load.saturated_scores_L.tolist() == [2]


def test_loads_of_micro_batches_and_steps_add_up_exactly_and_survive_json():
    big = 2**53 + 1  # lost if anything on the way were a float
    layers = model_of(layer([big, 1], peaks=5, saturated=7), layer([2, 2], peaks=3, saturated=1))
    load = take_load(layers)
    again = Load.of_counts(layers, json.loads(json.dumps((load + load).counts())))
    assert again.tokens_LE.tolist() == [[2 * big, 2], [4, 4]]
    assert again.sequence_peaks_L.tolist() == [10, 6]
    assert again.saturated_scores_L.tolist() == [14, 2]


def test_a_model_without_experts_has_no_load():
    load = take_load({})
    assert load.tokens_per_expert == {}
    assert load_record(load, {}) == {}


def test_the_line_of_a_model_of_58_layers_and_256_experts_stays_short():
    generator = torch.Generator().manual_seed(0)
    moes = [
        layer(
            (8 * torch.randint(10**6, (256,), generator=generator)).tolist(),
            peaks=10**7,
            saturated=12345,
            top_k=8,
            bias=torch.randn(256, generator=generator).tolist(),
        )
        for _ in range(58)
    ]
    layers = model_of(*moes, first=3)
    assert len(json.dumps(load_record(take_load(layers), layers))) < 7500
