"""One test for each way in which public stacks got expert balancing wrong (docs/traps.md)."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsv3.checkpoint.manifest import Identity
from dsv3.checkpoint.store import CheckpointStore
from dsv3.engine import distributed
from dsv3.model.backends.torch import TorchBackend
from dsv3.ops.routing import select_experts
from dsv3.parallel.dispatch import LocalDispatcher
from dsv3.train.balancing import count_batch, update_biases
from dsv3.train.load import take_load
from dsv3.train.loop import train_step
from numerics import balance_oracle as oracle
from numerics.small_model import (
    ARMS,
    balance,
    batch,
    build,
    counted_layer,
    model_config,
    mtp,
    router_inputs,
    router_logits,
)
from numerics.small_training import biases, gradients, training

GAMMA = 0.03
AUX_FREE = ["balance=aux_free", f"balance.bias_update_speed={GAMMA}", "mtp=depth1"]
AUX_FREE_ARM = {"strategy": "aux_free", "bias_update_speed": GAMMA}
# Every loss on its own, with what the others are switched off by.
LOSSES = {
    "sequence": {"strategy": "aux_loss", "sequence_aux_loss_coeff": 0.5},
    "device": {"strategy": "aux_loss_v2", "device_aux_loss_coeff": 0.5},
    "communication": {"strategy": "aux_loss_v2", "communication_aux_loss_coeff": 0.5},
    "batch": ARMS["aux_batch"],
}


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    with distributed.process_group("cpu"):
        yield


@pytest.mark.parametrize("convert", ["bfloat16", "half", "to", "double"])
def test_bias_fp32_after_to_bf16(convert: str) -> None:
    """Steps of 1e-3 vanish in a BF16 bias near 1."""
    model = build(model_config(), mtp=mtp(1))
    exact = 1.0 + torch.arange(8) * 1e-3  # what BF16, in steps of 2^-7 here, cannot hold
    for moe in model.moe_layers().values():
        moe.router.e_score_correction_bias.copy_(exact)
    model = model.to(torch.bfloat16) if convert == "to" else getattr(model, convert)()
    layers = model.moe_layers()
    assert len(layers) == 2
    for moe in layers.values():
        assert moe.router.weight.dtype != torch.float32, "the weights were converted"
        bias_E = moe.router.e_score_correction_bias
        assert bias_E.dtype == torch.float32
        assert bias_E is dict(moe.router.named_buffers())["e_score_correction_bias"]
        assert torch.equal(bias_E, exact)
        moe.tokens_per_expert_E[0] = 1
    arm = balance(strategy="aux_free", bias_update_speed=1e-3)
    update_biases(layers, take_load(layers), arm, gamma=1e-3)
    for moe in layers.values():
        moves = torch.tensor([-1e-3] + [1e-3] * 7)
        assert torch.equal(moe.router.e_score_correction_bias, exact + moves)


@pytest.mark.parametrize("convert", ["bfloat16", "half", "double"])
def test_counts_int64(convert: str) -> None:
    """A BF16 count stops at 256, an FP32 one at 2^24, and the sign of the bias step is noise."""
    model = getattr(build(model_config(), mtp=mtp(1)), convert)().bfloat16()
    ids, labels = batch(model.config, 2, 5)
    start = 2**53 + 1
    for moe in model.moe_layers().values():
        assert moe.tokens_per_expert_E.dtype == torch.int64
        moe.tokens_per_expert_E.fill_(start)
    model(ids, labels)
    for k, moe in enumerate(model.moe_layers().values()):
        counted = int((moe.tokens_per_expert_E - start).sum())
        assert counted == 2 * (5 - k) * model.config.num_experts_per_tok
        assert moe.last_tokens_per_expert_BE.dtype == torch.int64


@pytest.mark.parametrize("micro_batch_size", [4, 1])
def test_one_update_per_optimizer_step_under_accumulation_1_and_4(
    micro_batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bias moves once, by the load of the whole global batch, however it was cut."""
    went: list[Tensor] = []
    dispatch = LocalDispatcher.dispatch

    def noting(self: LocalDispatcher, x_TD: Tensor, ids_TK: Tensor, *rest: Any, **more: Any) -> Any:
        went.append(ids_TK)
        return dispatch(self, x_TD, ids_TK, *rest, **more)

    monkeypatch.setattr(LocalDispatcher, "dispatch", noting)
    with training(*AUX_FREE, f"schedule.micro_batch_size={micro_batch_size}") as trainer:
        layers = trainer.model.moe_layers()
        for _ in range(2):
            before = biases(trainer)
            went.clear()
            train_step(trainer)
            assert len(went) == len(layers) * 4 // micro_batch_size
            for at, (name, old_E) in enumerate(before.items()):
                counts_E = torch.zeros(8, dtype=torch.int64)
                for ids_TK in went[at :: len(layers)]:
                    counts_E += torch.bincount(ids_TK.flatten(), minlength=8)
                moves = torch.tensor(oracle.bias_moves(counts_E.tolist(), "sign", GAMMA))
                assert torch.equal(biases(trainer)[name], old_E + moves), name


def test_same_counts_with_and_without_recompute() -> None:
    """The forward pass that the backward pass repeats must not count its tokens again."""
    arm = balance(**ARMS["aux_free_seq"])
    plain, again = (
        build(model_config(num_hidden_layers=3), balance=arm, mtp=mtp(2), recompute=recompute)
        for recompute in ("none", "full")
    )
    ids, labels = batch(plain.config, 2, 6)
    losses = [model(ids, labels, torch.tensor(0.3)) for model in (plain, again)]
    for mine, wanted in zip(losses[1], losses[0], strict=True):
        assert torch.equal(mine, wanted)
    for each in losses:
        each.objective.backward()
    layers, counters = again.moe_layers(), ("sequence_peaks", "saturated_scores")
    positions = [2 * 6, 2 * 6, 2 * 5, 2 * 4]
    for tokens, (name, moe) in zip(positions, plain.moe_layers().items(), strict=True):
        for buffer in ("tokens_per_expert_E", *counters):
            assert torch.equal(getattr(layers[name], buffer), getattr(moe, buffer)), buffer
        counted = int(layers[name].tokens_per_expert_E.sum())
        assert counted == tokens * plain.config.num_experts_per_tok
    wanted_of = {name: p.grad for name, p in plain.named_parameters()}
    assert all(torch.equal(p.grad, wanted_of[name]) for name, p in again.named_parameters())


def test_every_moe_layer_incl_mtp_updated() -> None:
    with training(*AUX_FREE) as trainer:
        train_step(trainer)
        assert list(biases(trainer)) == [f"model.layers.{n}.mlp" for n in (1, 2, 3)]
        for name, bias_E in biases(trainer).items():
            assert set(bias_E.abs().tolist()) <= {0.0, torch.tensor(GAMMA).item()}
            assert bias_E.any(), name


def test_count_pass_is_not_counted() -> None:
    """The pass that only counts a batch for its loss leaves the counters of training at zero."""
    arm = balance(**ARMS["aux_batch"])
    model = build(model_config(), balance=arm, mtp=mtp(1))
    micro_batches = [batch(model.config, 1, 6, seed=seed) for seed in (1, 2)]
    layers = model.moe_layers()
    count_batch(model, layers, micro_batches, arm)
    for name, moe in layers.items():
        assert moe.batch_tokens_per_expert_E.any(), name
        for buffer in (
            "tokens_per_expert_E",
            "sequence_peaks",
            "saturated_scores",
        ):
            assert not getattr(moe, buffer).any(), buffer


@pytest.mark.parametrize("first", [[0, 0, 0], [2, 2, 2]], ids=["unused", "even"])
def test_one_count_all_layers(first: list[int]) -> None:
    """A layer with nothing to do is no reason to leave the loop over layers."""
    layers: Any = {
        "a": counted_layer(first),
        "b": counted_layer([3, 0, 3]),
        "c": counted_layer([0, 6, 0]),
    }
    update_biases(layers, take_load(layers), balance(**AUX_FREE_ARM), gamma=1e-3)
    moved = [layer.router.e_score_correction_bias.sign().tolist() for layer in layers.values()]
    assert moved == [[0, 0, 0], [-1, 1, -1], [1, -1, 1]]
    assert not any(layer.tokens_per_expert_E.any() for layer in layers.values())


def test_count_not_aliased() -> None:
    """What is summed over ranks in place must not be the counter, nor a view of it."""
    model = build(model_config(), mtp=mtp(1))
    model(*batch(model.config, 1, 6))
    layers = model.moe_layers()
    counted = {name: moe.tokens_per_expert_E.clone() for name, moe in layers.items()}
    last = {name: moe.last_tokens_per_expert_BE.clone() for name, moe in layers.items()}
    load = take_load(layers)
    for name, moe in layers.items():
        assert torch.equal(load.tokens_per_expert[name], counted[name])
        moe.tokens_per_expert_E.fill_(7)
        assert torch.equal(load.tokens_per_expert[name], counted[name])
        load.tokens_per_expert[name].mul_(5)  # as an in-place all-reduce would
        assert (moe.tokens_per_expert_E == 7).all()
        assert torch.equal(moe.last_tokens_per_expert_BE, last[name])


class Padding(TorchBackend):
    """A backend whose experts take rows in sixteens, as FP8 kernels do."""

    def row_multiple(self, experts: nn.Module) -> int:
        return 16


def test_padding_rows_are_not_counted() -> None:
    """Rows that only fill up an expert are nobody's tokens."""
    arm = balance(**ARMS["aux_free_seq"])
    plain, padded = (
        build(model_config(), backend=backend, balance=arm, mtp=mtp(1))
        for backend in (TorchBackend(), Padding())
    )
    ids, labels = batch(plain.config, 2, 5)
    balance_losses = [model(ids, labels).balance for model in (plain, padded)]
    # The layers before sum products in another order: a few ulps of FP32.
    torch.testing.assert_close(*balance_losses, rtol=1e-5, atol=0)
    for name, moe in plain.moe_layers().items():
        other = padded.moe_layers()[name]
        for buffer in ("tokens_per_expert_E", "sequence_peaks", "last_tokens_per_expert_BE"):
            assert torch.equal(getattr(other, buffer), getattr(moe, buffer)), buffer


def test_bias_in_checkpoint_in_fp32(tmp_path: Any) -> None:
    """Saved and loaded to the last bit in a BF16 run, for the MTP module's router as well."""
    exact = 1.0 + torch.arange(8) * 1e-3  # BF16 has steps of 2^-7 here
    store = CheckpointStore(tmp_path, Identity(run_id="traps", config_sha256="a" * 64))
    with training(*AUX_FREE, "precision=bf16") as trainer:
        for moe in trainer.model.moe_layers().values():
            moe.router.e_score_correction_bias.copy_(exact)
        store.save(
            trainer.engine.fragments(),
            step=1,
            optimizer_step=trainer.engine.optimizer_step,
            attempt=1,
            layout={},
            state={},
            rank_state={},
        )
        for moe in trainer.model.moe_layers().values():
            moe.router.e_score_correction_bias.zero_()
        checkpoint = store.find_newest().checkpoint
        assert checkpoint is not None
        store.require(checkpoint, trainer.engine.expected_tensors(0))
        store.load(checkpoint, trainer.engine.fragments())
        assert len(biases(trainer)) == 3
        for name, bias_E in biases(trainer).items():
            assert bias_E.dtype == torch.float32
            assert torch.equal(bias_E, exact), name


def test_group_mask_minus_inf_with_all_negative_bias() -> None:
    """With every biased score below zero, a mask of zero would win over the best groups."""
    scores = torch.tensor([[0.9, 0.8, 0.1, 0.1]])
    bias = torch.full((4,), -10.0)
    ids = select_experts(scores, bias, top_k=2, n_group=2, topk_group=1)
    assert set(ids[0].tolist()) == {0, 1}


def test_gate_weights_from_unbiased_scores() -> None:
    """The bias decides who is chosen, and has no part in how much an expert counts."""
    config = model_config(n_group=1, topk_group=1, norm_topk_prob=False)
    model = build(config)
    (moe,) = model.moe_layers().values()
    moe.router.e_score_correction_bias[5] = 3.0
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    dispatch = moe.dispatcher.dispatch

    def noting(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, **more: Any) -> Any:
        seen.append((x_TD, ids_TK, weights_TK))
        return dispatch(x_TD, ids_TK, weights_TK, **more)

    moe.dispatcher.dispatch = noting  # type: ignore[method-assign]
    model(*batch(config, 2, 5))
    ((x_TD, ids_TK, weights_TK),) = seen
    assert (ids_TK == 5).any(dim=1).all()
    scores = 1 / (1 + torch.exp(-(x_TD @ moe.router.weight.t())))
    wanted = scores.gather(1, ids_TK) * config.routed_scaling_factor
    # One sigmoid and one product in FP32.
    torch.testing.assert_close(weights_TK, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_router_gradient_of_each_aux_loss_is_not_zero(loss: str) -> None:
    """Of the balance loss alone: the language model's own gradient would hide a broken graph."""
    arm = balance(**LOSSES[loss])
    model = build(model_config(num_hidden_layers=3), balance=arm, mtp=mtp(1))
    balance_loss = model(*batch(model.config, 2, 6), torch.tensor(0.3)).balance
    layers = model.moe_layers()
    weights = [moe.router.weight for moe in layers.values()]
    gradients_of = torch.autograd.grad(balance_loss, weights, allow_unused=True)
    assert len(layers) == 3
    for name, gradient in zip(layers, gradients_of, strict=True):
        assert gradient is not None, name
        assert gradient.norm() > 1e-3 * arm.sequence_aux_loss_coeff + 1e-4, name


@pytest.mark.parametrize("strategy", ["aux_loss", "aux_loss_v2", "aux_batch"])
def test_aux_strength_invariant_to_micro_batch_and_accumulation(strategy: str) -> None:
    """One step over four sequences: gradients do not know how they were cut."""
    keys = [f"balance.{key}={value}" for key, value in ARMS[strategy].items() if "coeff" in key]
    losses, gradients_of = [], []
    for micro_batch_size in (4, 2, 1):
        cut = f"schedule.micro_batch_size={micro_batch_size}"
        with training(f"balance={strategy}", *keys, "mtp=depth1", cut) as trainer:
            losses.append(train_step(trainer)["balance_loss"])
            gradients_of.append(gradients(trainer))
    # Sums in another order, in FP32.
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-6)
    for other in gradients_of[1:]:
        for name, whole in gradients_of[0].items():
            assert (other[name] - whole).norm() < 1e-5 * whole.norm(), name


@pytest.mark.parametrize("strategy", ["aux_loss", "aux_loss_v2", "aux_batch"])
@pytest.mark.parametrize("logit", [-60.0, -200.0])
def test_epsilon_not_hackable(strategy: str, logit: float) -> None:
    """Scores of 1e-26 all round must cost what large ones in the same proportions cost.

    With s / (sum + 1e-20) a router escapes the loss by scoring everything near zero.
    """
    model = build(model_config(), balance=balance(**ARMS[strategy]))
    (moe,) = model.moe_layers().values()
    with torch.no_grad():
        # A first coordinate that is large in every token, and weighs down every score.
        model.model.embed_tokens.weight[:, 0] = 30.0
        moe.router.weight[:, 0] = logit / 12**0.5
    ids, labels = batch(model.config, 2, 6)
    with router_inputs(model) as seen:
        loss = model(ids, labels).balance
    ((name, (x_TD,)),) = seen.items()
    logits_BSE = router_logits(model, name, x_TD, 2)
    assert (logits_BSE < 0.8 * logit).all()
    assert torch.isfinite(loss)
    (gradient,) = torch.autograd.grad(loss, moe.router.weight)
    assert torch.isfinite(gradient).all()
    strengths = sum(float(v) for k, v in ARMS[strategy].items() if "coeff" in k)  # type: ignore[arg-type]
    assert loss > 0.5 * strengths, "balanced experts cost the sum of the strengths"
    assert gradient.norm() > 0


@pytest.mark.parametrize("strategy", ARMS)
def test_aux_not_in_reported_lm_loss(strategy: str) -> None:
    keys = [f"balance.{key}={value}" for key, value in ARMS[strategy].items() if "coeff" in key]
    lines, gradients_of = [], []
    for overrides in (["balance=none"], [f"balance={strategy}", *keys]):
        with training(*overrides) as trainer:
            lines.append(train_step(trainer))
            gradients_of.append(gradients(trainer))
    assert lines[1]["loss"] == lines[0]["loss"], "bit for bit: the forward pass is the same"
    assert lines[1]["balance_loss"] > 0
    router = "model.layers.1.mlp.gate.weight"
    assert not torch.equal(gradients_of[0][router], gradients_of[1][router])
