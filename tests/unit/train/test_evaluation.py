"""Losses and loads are summed per domain and divided once; nothing is averaged twice."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dsv3.config.compose import compose
from dsv3.data.samples import ValidationSample
from dsv3.train.build import build_model
from dsv3.train.evaluation import evaluate
from dsv3.train.layers import ModelLayers

CPU = torch.device("cpu")


class FakeMoE:
    last_tokens_per_expert_BE = None


class FakeModel:
    """Loses, on every label, as many nats as the label's number; sends label n to expert n % 4."""

    def __init__(self):
        # Layer 3 is that of an MTP module: it does not run, its counts are of another pass.
        self.layers = {f"model.layers.{n}.mlp": FakeMoE() for n in (1, 2, 3)}
        self.layers["model.layers.3.mlp"].last_tokens_per_expert_BE = torch.full((9, 4), 777)

    def moe_layers(self):
        return self.layers

    def token_losses(self, input_ids_BS, labels_BS):
        assert torch.equal(input_ids_BS[:, 1:], labels_BS[:, :-1])
        counts_BE = torch.stack([torch.bincount(row % 4, minlength=4) for row in labels_BS])
        self.layers["model.layers.1.mlp"].last_tokens_per_expert_BE = counts_BE
        self.layers["model.layers.2.mlp"].last_tokens_per_expert_BE = torch.ones_like(counts_BE)
        return labels_BS.float()

    def mtp_acceptance(self, input_ids_BS):
        for moe in self.layers.values():  # a pass of its own, which nobody counts
            moe.last_tokens_per_expert_BE = torch.full((9, 4), 555)
        return (input_ids_BS == 5).float().mean() * torch.tensor([1.0, 0.5])


def evaluated(model, samples, batch_size, **options):
    """`evaluate` with the layers of a fake, the last of which is that of an MTP module."""
    layers = ModelLayers(
        model.layers, names=(*model.layers,), experts=4, top_k=1, device=CPU, mtp_depth=1
    )
    return evaluate(model, samples, batch_size, CPU, layers=layers, **options)


def sample(domain, ids, target_bytes):
    return ValidationSample(domain, np.array(ids, dtype=np.int64), target_bytes)


SAMPLES = [
    sample("b", [9, 1, 2], 10),
    sample("a", [9, 3, 4], 5),
    sample("b", [9, 5, 6], 30),
    sample("b", [9, 5, 5], 1),
    sample("b", [9, 1, 1], 1),
]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_losses_per_domain_and_in_all(batch_size):
    record = evaluated(FakeModel(), SAMPLES[:3], batch_size).record()
    assert record["loss"] == (3 + 7 + 11) / 6
    assert record["evaluated_tokens"] == 6
    assert record["bpb"] == pytest.approx(21 / math.log(2) / 45, rel=1e-15)
    assert list(record["domains"]) == ["a", "b"]
    assert record["domains"]["a"]["loss"] == 3.5
    assert record["domains"]["b"]["loss"] == 14 / 4
    assert record["domains"]["b"]["bpb"] == pytest.approx(14 / math.log(2) / 40, rel=1e-15)
    assert "mtp_acceptance" not in record


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_load_per_domain_and_layer(batch_size):
    load = evaluated(FakeModel(), SAMPLES, batch_size, mtp_depth=2).load
    assert load.domains == ("a", "b")
    assert load.layers == ("model.layers.1.mlp", "model.layers.2.mlp")  # without the MTP module's
    assert load.tokens_per_expert.dtype == torch.int64
    # a: 3, 4.  b: 1 2, 5 6, 5 5, 1 1.  Second layer: a token for every expert in every sequence.
    assert load.tokens_per_expert[:, 0].tolist() == [[1, 0, 0, 1], [0, 6, 2, 0]]
    assert load.tokens_per_expert[:, 1].tolist() == [[1] * 4, [4] * 4]
    assert load.sequences.tolist() == [1, 4]
    # By hand: layer 1 got [1, 6, 2, 1] of 10 tokens, 2.5 each if even; its sequences of 2 tokens
    # peak at 1, 1, 1, 2, 2 where 0.5 were even.
    assert load.max_violation_global() == {"1": pytest.approx(6 / 2.5 - 1), "2": 0.0}
    assert load.max_violation_sequence() == {"1": pytest.approx(1.4 / 0.5 - 1), "2": 0.0}
    assert load.max_violation_of("a") == {"1": pytest.approx(1 / 0.5 - 1), "2": 0.0}
    assert load.relative_load()[1, 0].tolist() == [0, 3, 1, 0]
    by_layer = load.by_layer()
    entropy = -sum(p * math.log(p) for p in (0.1, 0.6, 0.2, 0.1)) / math.log(4)
    assert by_layer["1"]["load_entropy"] == pytest.approx(entropy, rel=1e-12)
    assert by_layer["2"]["load_entropy"] == pytest.approx(1, rel=1e-12)
    assert by_layer["1"]["dead_experts"] == 0


def test_the_record_averages_over_layers():
    record = evaluated(FakeModel(), SAMPLES, 2).record()
    assert record["max_violation_global"] == pytest.approx((6 / 2.5 - 1 + 0) / 2)
    assert record["max_violation_global_per_layer"] == {"1": pytest.approx(1.4), "2": 0.0}
    assert record["max_violation_sequence"] == pytest.approx((1.8 + 0) / 2)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5])
def test_acceptance_weighs_every_sequence_alike(batch_size):
    samples = [*SAMPLES[:4], SAMPLES[3]]
    record = evaluated(FakeModel(), samples, batch_size, mtp_depth=2).record()
    assert record["mtp_acceptance"] == pytest.approx([0.3, 0.15], rel=1e-6)  # 3 fives of 10


def test_a_model_without_experts_has_no_load():
    dense = SimpleNamespace(token_losses=lambda _input_ids_BS, labels_BS: labels_BS.float())
    layers = ModelLayers.whole({})
    evaluation = evaluate(dense, SAMPLES, 2, CPU, layers=layers)
    assert "max_violation_global" not in evaluation.record()
    assert evaluation.figures()["layers"] == {}


@pytest.fixture(scope="module")
def small():
    words = "hidden_size=32 num_hidden_layers=2 intermediate_size=64 moe_intermediate_size=16"
    words += " vocab_size=320 n_routed_experts=8"
    overrides = [f"model.{word}" for word in words.split()]
    config = compose(
        ["model=moe_nano", "mtp=depth1", "schedule.sequence_length=16", *overrides]
    ).config
    return build_model(config, CPU)


def test_evaluation_excludes_mtp_leaves_training_as_it_was_and_repeats_to_the_bit(small):
    draw = np.random.default_rng(0)
    samples = [sample("ab"[n % 2], draw.integers(0, 64, 17), 20) for n in range(6)]
    moe = next(iter(small.moe_layers().values()))
    with torch.no_grad():
        moe.router.e_score_correction_bias.copy_(torch.linspace(-0.1, 0.1, 8))
        moe.tokens_per_expert_E += 3
    before = {name: value.clone() for name, value in small.named_buffers()}
    random_state = torch.get_rng_state()
    small.eval()
    with torch.no_grad():
        layers = ModelLayers.of_model(small, CPU)
        first, second = (
            evaluate(small, samples, 2, CPU, layers=layers, mtp_depth=1) for _ in range(2)
        )
        pairs = evaluate(small, samples[:2], 2, CPU, layers=layers)
    small.train()
    assert first.figures() == second.figures()
    assert torch.equal(first.load.tokens_per_expert, second.load.tokens_per_expert)
    assert len(first.load.layers) == 1  # of the two MoE layers one is the MTP module's
    assert 0 <= first.mtp_acceptance[0] <= 1
    assert first.load.tokens_per_expert.sum() == 6 * 16 * small.config.num_experts_per_tok
    assert pairs.load.sequences.tolist() == [1, 1]
    assert torch.equal(torch.get_rng_state(), random_state)
    after = dict(small.named_buffers())
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
