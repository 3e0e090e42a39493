"""The bias rule against a plain loop, and the figures of the load."""

import pytest
import torch

from dsv3.config.compose import compose
from dsv3.train.balancing import Load, take_load, update_biases


class FakeRouter:
    def __init__(self, experts):
        self.e_score_correction_bias = torch.zeros(experts)


class FakeMoE:
    """What the rule touches of a MoE layer, and nothing else."""

    def __init__(self, counts):
        self.tokens_per_expert_E = torch.tensor(counts)
        self.router = FakeRouter(len(counts))


def oracle(counts, gamma):
    """b_i += gamma * sign(mean(c) - c_i), one expert at a time, in exact integers."""
    total, experts = sum(counts), len(counts)
    moves = []
    for count in counts:
        gap = total - experts * count
        moves.append(gamma * ((gap > 0) - (gap < 0)))
    return moves


AUX_FREE = compose(["balance=aux_free"]).config.balance


@pytest.mark.parametrize(
    "counts",
    [
        [4, 0, 2, 2],  # above, below, exactly the mean twice
        [1, 1, 1],
        [0, 0, 7],
        [10**15, 10**15 + 1, 10**15 - 1],  # the mean is lost in float32, and nearly in float64
    ],
)
def test_bias_moves_by_the_sign_of_the_gap(counts):
    layers = {"a": FakeMoE(counts)}
    update_biases(layers, take_load(layers), AUX_FREE, 0.5)
    expected = torch.tensor(oracle(counts, 0.001 * 0.5))
    assert torch.equal(layers["a"].router.e_score_correction_bias, expected)


def test_every_layer_moves_and_the_counts_start_over():
    layers = {"a": FakeMoE([3, 1]), "b": FakeMoE([1, 3])}
    load = take_load(layers)
    update_biases(layers, load, AUX_FREE, 1.0)
    assert [m.router.e_score_correction_bias.sign().tolist() for m in layers.values()] == [
        [-1, 1],
        [1, -1],
    ]
    assert all(int(m.tokens_per_expert_E.sum()) == 0 for m in layers.values())
    assert load.tokens_per_expert["a"].tolist() == [3, 1], "the load is a copy, not the counters"


def test_no_balancing_moves_nothing():
    layers = {"a": FakeMoE([3, 1])}
    none = AUX_FREE.model_copy(update={"strategy": "none"})
    update_biases(layers, take_load(layers), none, 1.0)
    assert torch.equal(layers["a"].router.e_score_correction_bias, torch.zeros(2))


def test_max_violation_and_dead_experts():
    load = Load({"a": torch.tensor([6, 0, 2, 0]), "b": torch.tensor([5, 5])})
    assert load.max_violation() == {"a": 2.0, "b": 0.0}
    assert load.dead_experts() == {"a": 2, "b": 0}


def test_an_empty_step_has_no_violation():
    assert Load({"a": torch.zeros(3, dtype=torch.int64)}).max_violation() == {"a": 0.0}
