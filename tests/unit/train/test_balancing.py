"""The bias rule against a plain loop."""

import pytest
import torch

from dsv3.config.compose import compose
from dsv3.train.balancing import update_biases
from dsv3.train.load import take_load
from unit.train.fake_layers import layer


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
    layers = {"a": layer(counts)}
    update_biases(layers, take_load(layers), AUX_FREE, gamma=0.001 * 0.5)
    expected = torch.tensor(oracle(counts, 0.001 * 0.5))
    assert torch.equal(layers["a"].router.e_score_correction_bias, expected)


def test_every_layer_moves_and_the_counts_start_over():
    layers = {"a": layer([3, 1]), "b": layer([1, 3])}
    load = take_load(layers)
    update_biases(layers, load, AUX_FREE, gamma=0.001)
    assert [m.router.e_score_correction_bias.sign().tolist() for m in layers.values()] == [
        [-1, 1],
        [1, -1],
    ]
    assert all(int(m.tokens_per_expert_E.sum()) == 0 for m in layers.values())
    assert load.tokens_per_expert["a"].tolist() == [3, 1], "the load is a copy, not the counters"


def test_no_balancing_moves_nothing():
    layers = {"a": layer([3, 1])}
    none = AUX_FREE.model_copy(update={"strategy": "none"})
    update_biases(layers, take_load(layers), none, gamma=0.001)
    assert torch.equal(layers["a"].router.e_score_correction_bias, torch.zeros(2))
