"""One test for each way in which public stacks got multi-token prediction wrong (docs/traps.md)."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv3.engine import distributed
from dsv3.model.transformer import Transformer
from dsv3.train.loop import evaluate_now, train_step
from numerics.small_model import batch, build, model_config, mtp
from numerics.small_training import (
    GLOBAL_BATCH_SIZE,
    SEQUENCE_LENGTH,
    STEPS,
    biases,
    gradients,
    training,
)

LAMBDA = torch.tensor(0.3)
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
OWN = "model.layers.3."  # of the module behind the three layers of `training`


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    with distributed.process_group("cpu"):
        yield


def test_mtp_mean_not_sum() -> None:
    """Twice the modules must not be twice the weight."""
    model = build(model_config(), mtp=mtp(2))
    losses = model(*batch(model.config, 2, 6), LAMBDA)
    mean = sum(losses.mtp.tolist()) / 2
    # A product and a sum in FP32.
    assert losses.objective.item() == pytest.approx(losses.lm.item() + 0.3 * mean, rel=1e-6)


def test_mtp_loss_is_divided_by_all_tokens() -> None:
    """1/T in eq. 24, although one term is missing: uniform predictions cost (T-k)/T log X."""
    model = build(model_config(), mtp=mtp(2))
    with torch.no_grad():
        model.lm_head.weight.zero_()
    ids, labels = batch(model.config, 3, 6)
    uniform = torch.tensor(29.0).log().item()
    wanted = [5 / 6 * uniform, 4 / 6 * uniform]
    assert model(ids, labels, LAMBDA).mtp.tolist() == pytest.approx(wanted, rel=1e-6)


def test_mtp_scale_under_accumulation() -> None:
    """The gradient of a step does not know in how many micro batches it was made."""
    lines, gradients_of = [], []
    for micro_batch_size in (4, 1):
        with training("mtp=depth1", f"schedule.micro_batch_size={micro_batch_size}") as trainer:
            lines.append(train_step(trainer))
            gradients_of.append(gradients(trainer))
    assert lines[1]["mtp_loss"] == pytest.approx(lines[0]["mtp_loss"], rel=1e-6)
    for name, whole in gradients_of[0].items():
        # Sums in another order, in FP32.
        assert (gradients_of[1][name] - whole).norm() < 1e-5 * whole.norm(), name


def test_mtp_lambda_schedule() -> None:
    """0.3, then 0.1 from the middle on: what the model is given, and what its gradient becomes."""
    per_step = SEQUENCE_LENGTH * GLOBAL_BATCH_SIZE
    axis = f"schedule.reference_tokens={STEPS * per_step}"
    phases = (
        f"[{{until: {STEPS // 2 * per_step}, shape: constant, value: 1.0}},"
        f" {{until: {STEPS * per_step}, shape: constant, value: 0.3333333333333333}}]"
    )
    curve = f"schedule.mtp_loss_coeff_curve.phases={phases}"
    flat = ["schedule.lr_curve.phases=[]", "schedule.bias_update_speed_curve.phases=[]"]
    given: list[float] = []
    with training("mtp=depth1", axis, *flat, "schedule.lr_curve.start=1.0", curve) as trainer:
        trainer.model.register_forward_pre_hook(
            lambda _, arguments: given.append(float(arguments[2]))
        )
        for _ in range(STEPS):
            train_step(trainer)
    expected = [0.3] * (STEPS // 2) + [0.1] * (STEPS // 2)
    assert given == pytest.approx(expected, rel=1e-6)  # FP32 of the weight


@pytest.mark.parametrize("coeff", [0.3, 0.1, 0.0])
def test_mtp_gradient_follows_lambda(coeff: float) -> None:
    """The module's own weights have no other loss: their gradient is proportional to lambda."""
    model = build(model_config(), mtp=mtp(1))
    ids, labels = batch(model.config, 2, 6)
    own = [p for name, p in model.named_parameters() if name.startswith("model.layers.2.")]
    whole = torch.autograd.grad(model(ids, labels, torch.tensor(1.0)).objective, own)
    part = torch.autograd.grad(model(ids, labels, torch.tensor(coeff)).objective, own)
    for mine, wanted in zip(part, whole, strict=True):
        assert (mine - coeff * wanted).norm() <= 1e-5 * coeff * wanted.norm()


@pytest.mark.parametrize("depth", [1, 2])
def test_no_mtp_loss_past_the_tail(depth: int) -> None:
    """The last k positions have no target k further: nothing may be made up for them.

    A roll instead of a slice would use the first labels again, so those must not matter.
    """
    model = build(model_config(), mtp=mtp(depth))
    ids, labels = batch(model.config, 2, 6)
    losses = model(ids, labels, LAMBDA).mtp
    for k in range(1, depth + 1):
        # Module k predicts labels[k:]; an input of its own are ids[k:].
        other = labels.clone()
        other[:, :k] = (labels[:, :k] + 1) % model.config.vocab_size
        assert model(ids, other, LAMBDA).mtp[k - 1] == losses[k - 1]
        last = labels.clone()
        last[:, -1] = (labels[:, -1] + 1) % model.config.vocab_size
        assert model(ids, last, LAMBDA).mtp[k - 1] != losses[k - 1]
    top_k = model.config.num_experts_per_tok
    layers = build(model_config(), mtp=mtp(depth))
    layers(ids, labels, LAMBDA)
    tokens = [int(moe.tokens_per_expert_E.sum()) // top_k for moe in layers.moe_layers().values()]
    assert tokens == [2 * (6 - k) for k in range(depth + 1)]


@pytest.mark.parametrize("name", [HEAD, EMBEDDING])
def test_lm_head_gradient_with_mtp_is_the_sum_of_both(name: str) -> None:
    """Through the engine: one tensor, one master, one gradient made of both uses."""
    parts = {}
    for kind, overrides in {
        "both": ["mtp=depth1", "mtp.loss_coeff=0.3"],
        "none": ["mtp=depth1", "mtp.loss_coeff=0.0"],
        "twice": ["mtp=depth1", "mtp.loss_coeff=0.6"],
        "off": ["mtp=off"],
    }.items():
        with training(*overrides) as trainer:
            train_step(trainer)
            parts[kind] = gradients(trainer)[name]
            inputs = [trainer.samples[n][:-1] for n in range(GLOBAL_BATCH_SIZE)]
    share = parts["both"] - parts["none"]
    assert share.norm() > 0.01 * parts["none"].norm()
    if name == EMBEDDING:
        # The main model's state at the last position is read by no module: what the token there
        # gets of the modules' loss, it gets as their own input.
        tokens = [token for row in inputs for token in row.tolist()]
        once = [int(row[-1]) for row in inputs if tokens.count(int(row[-1])) == 1]
        assert once and (share[once].norm(dim=1) > 1e-4).all()
    # FP32: the share is a difference of two sums of some hundred terms.
    assert (parts["twice"] - parts["none"] - 2 * share).norm() < 1e-4 * share.norm()
    assert (parts["none"] - parts["off"]).norm() < 1e-5 * parts["off"].norm()


def test_mtp_not_in_reported_lm_loss() -> None:
    lines = []
    for overrides in (["mtp=off"], ["mtp=depth1"]):
        with training(*overrides) as trainer:
            lines.append(train_step(trainer))
    assert lines[1]["loss"] == lines[0]["loss"], "bit for bit: the main model is the same"
    assert lines[1]["grad_norm"] > lines[0]["grad_norm"]


def test_evaluation_excludes_mtp_and_bias_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps with an evaluation between them are bit for bit the two steps without."""
    monkeypatch.setattr("dsv3.train.loop.save_evaluation", lambda *_, **__: None)
    overrides = ["balance=aux_free_seq", "balance.bias_update_speed=0.03", "mtp=depth1"]
    lines, states = [], []
    for evaluating in (False, True):
        with training(*overrides) as trainer:
            train_step(trainer)
            before = biases(trainer)
            counts = _counters(trainer.model)
            if evaluating:
                loss = evaluate_now(trainer).loss
                assert all(torch.equal(b, before[name]) for name, b in biases(trainer).items())
                for name, value in _counters(trainer.model).items():
                    assert torch.equal(value, counts[name]), name
                own = [p for n, p in trainer.model.named_parameters() if n.startswith(OWN)]
                kept = [parameter.detach().clone() for parameter in own]
                with torch.no_grad():
                    for parameter in own:
                        parameter.fill_(torch.nan)
                    assert evaluate_now(trainer).loss == loss
                    for parameter, value in zip(own, kept, strict=True):
                        parameter.copy_(value)
            lines.append({k: v for k, v in train_step(trainer).items() if "per_second" not in k})
            states.append(biases(trainer))
    assert lines[0] == lines[1]
    assert all(torch.equal(states[1][name], bias_E) for name, bias_E in states[0].items())


def _counters(model: Transformer) -> dict[str, Tensor]:
    """Every buffer of the MoE layers that a training step adds to."""
    found: dict[str, Any] = {}
    for layer, moe in model.moe_layers().items():
        for name in ("tokens_per_expert_E", "sequence_peaks"):
            found[f"{layer}.{name}"] = getattr(moe, name).clone()
        found[f"{layer}.saturated_scores"] = moe.saturated_scores.clone()
    return found
