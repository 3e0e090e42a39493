"""Balance losses and bias rules against loops written from the formulas: values and gradients."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsv3.config.balance import BalanceConfig
from dsv3.model.transformer import Transformer
from dsv3.train.balancing import count_batch, keep_for_next_step, update_biases
from dsv3.train.load import take_load
from numerics import balance_oracle as oracle
from numerics.small_model import (
    ARMS,
    balance,
    batch,
    build,
    counted_layer,
    model_config,
    router_inputs,
    router_logits,
)

# Below this gap an ulp of FP32 could send a token to another expert than the FP64 oracle's.
CLEAR = 1e-5
EXAMPLES = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much]
)


class Case(NamedTuple):
    """One shape: experts in groups, how many a token goes to, what its scores are."""

    n_group: int
    group_size: int
    topk_group: int
    top_k: int
    scoring_func: str
    sequences: int
    length: int
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n_group, group_size = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    assume(n_group * group_size >= 2)
    topk_group = draw(st.integers(1, n_group))
    return Case(
        n_group,
        group_size,
        topk_group,
        draw(st.integers(1, topk_group * group_size)),
        draw(st.sampled_from(["sigmoid", "softmax"])),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 7)),
        draw(st.integers(0, 2**31)),
    )


def model_of(case: Case, arm: BalanceConfig) -> Transformer:
    """One MoE layer whose scores spread, and a bias that moves selections."""
    config = model_config(
        n_routed_experts=case.n_group * case.group_size,
        num_experts_per_tok=case.top_k,
        n_group=case.n_group,
        topk_group=case.topk_group,
        scoring_func=case.scoring_func,
    )
    model = build(config, seed=case.seed, balance=arm)
    generator = torch.Generator().manual_seed(case.seed)
    for moe in model.moe_layers().values():
        bias_E = torch.rand(config.n_routed_experts, generator=generator) - 0.5
        moe.router.e_score_correction_bias.copy_(bias_E)
    return model


def by_formula(
    logits_BSE: Tensor, bias_E: Tensor, model: Transformer, arm: BalanceConfig
) -> tuple[Tensor, float]:
    """The loss of one layer with its strengths, and the closest decision of its selections."""
    c, normalised = model.config, arm.aux_loss_scores == "normalised"
    scores = oracle.scores_of(logits_BSE, c.scoring_func)
    limits = {"n_group": c.n_group, "topk_group": c.topk_group}
    went = oracle.routed(scores, bias_E.double().tolist(), top_k=c.num_experts_per_tok, **limits)
    best = oracle.best_by_score(scores, c.num_experts_per_tok)
    counted = went.selection if arm.aux_loss_selection == "routed" else best.selection
    common = {"top_k": c.num_experts_per_tok, "normalised": normalised}
    loss = arm.sequence_aux_loss_coeff * oracle.sequence_loss(scores, counted, **common)
    loss = loss + arm.device_aux_loss_coeff * oracle.device_loss(
        scores, counted, n_group=c.n_group, **common
    )
    loss = loss + arm.communication_aux_loss_coeff * oracle.communication_loss(
        scores, counted, normalised=normalised, **limits
    )
    loss = loss + arm.batch_aux_loss_coeff * oracle.batch_loss(scores, counted, **common)
    return loss, min(went.margin, best.margin)


def require_equal_gradients(mine: Tensor, wanted: Tensor, model: Transformer) -> None:
    """Gradients of every weight that has one, as one relative norm per tensor.

    FP32 keeps 24 bits, and sums of a few dozen terms lose three or four: 1e-5. The absolute part
    is for gradients that vanish by cancelling, as where every expert is chosen by every token.
    """
    named = dict(model.named_parameters())
    options = {"retain_graph": True, "allow_unused": True}
    actual = torch.autograd.grad(mine, list(named.values()), **options)
    expected = torch.autograd.grad(wanted, list(named.values()), **options)
    for name, gradient, reference in zip(named, actual, expected, strict=True):
        assert (gradient is None or not gradient.any()) or reference is not None, name
        if reference is None:
            continue
        assert gradient is not None, f"{name} is not reached"
        assert (gradient - reference).norm() <= 1e-5 * reference.norm() + 1e-6, name


@pytest.mark.parametrize(
    "strengths",
    [
        {"sequence_aux_loss_coeff": 0.7},
        {"device_aux_loss_coeff": 0.7},
        {"communication_aux_loss_coeff": 0.7},
        ARMS["aux_loss_v2"],
    ],
    ids=["expert", "device", "communication", "all"],
)
@EXAMPLES
@given(
    case=cases(),
    selection=st.sampled_from(["top_k_of_scores", "routed"]),
    scores=st.sampled_from(["normalised", "plain"]),
)
def test_losses_within_a_sequence(
    strengths: dict[str, object], case: Case, selection: str, scores: str
) -> None:
    common = {"aux_loss_selection": selection, "aux_loss_scores": scores}
    arm = balance(**{"strategy": "aux_loss_v2", **strengths, **common})
    compare_one_layer(case, arm)


@EXAMPLES
@given(case=cases(), scores=st.sampled_from(["normalised", "plain"]))
def test_loss_of_an_undivided_batch(case: Case, scores: str) -> None:
    compare_one_layer(case, balance(**ARMS["aux_batch"], aux_loss_scores=scores))


@EXAMPLES
@given(case=cases(), scores=st.sampled_from(["normalised", "plain"]))
def test_loss_of_a_batch_in_micro_batches_is_that_of_the_whole(case: Case, scores: str) -> None:
    """Each micro batch against f of all tokens and P of its own; their mean against the whole."""
    arm = balance(**ARMS["aux_batch"], aux_loss_scores=scores)
    model = model_of(case, arm)
    ids, labels = batch(model.config, case.sequences, case.length, seed=case.seed)
    ((name, moe),) = model.moe_layers().items()
    with router_inputs(model) as seen:
        model(ids, labels)
    take_load({name: moe})
    logits_BSE = router_logits(model, name, seen[name][0], case.sequences)
    whole, margin = by_formula(logits_BSE, moe.router.e_score_correction_bias, model, arm)
    assume(margin > CLEAR)

    micro_batches = list(zip(ids.split(1), labels.split(1), strict=True))
    count_batch(model, {name: moe}, micro_batches, arm)
    parts = [model(*micro_batch).balance for micro_batch in micro_batches]
    selection = oracle.routed(
        oracle.scores_of(logits_BSE, case.scoring_func),
        moe.router.e_score_correction_bias.double().tolist(),
        top_k=case.top_k,
        n_group=case.n_group,
        topk_group=case.topk_group,
    ).selection
    for part, logits_SE in zip(parts, logits_BSE, strict=True):
        local = oracle.scores_of(logits_SE.unsqueeze(0), case.scoring_func)
        wanted = 0.6 * oracle.batch_loss(
            local, selection, top_k=case.top_k, normalised=scores == "normalised"
        )
        assert part.item() == pytest.approx(wanted.item(), rel=1e-5)
    mean = torch.stack(parts).mean()
    assert mean.item() == pytest.approx(whole.item(), rel=1e-5)
    require_equal_gradients(mean, whole, model)


def compare_one_layer(case: Case, arm: BalanceConfig) -> None:
    model = model_of(case, arm)
    ids, labels = batch(model.config, case.sequences, case.length, seed=case.seed)
    with router_inputs(model) as seen:
        losses = model(ids, labels)
    ((name, moe),) = model.moe_layers().items()
    (x_TD,) = seen[name]
    logits_BSE = router_logits(model, name, x_TD, case.sequences)
    bias_E = moe.router.e_score_correction_bias
    wanted, margin = by_formula(logits_BSE, bias_E, model, arm)
    assume(margin > CLEAR)
    # FP32 sums of some dozen terms; scores of a softmax can be as small as 1e-4 of the largest.
    assert losses.balance.item() == pytest.approx(wanted.item(), rel=1e-5)
    require_equal_gradients(losses.balance, wanted, model)


@pytest.mark.parametrize("strategy", ARMS)
def test_layers_are_summed_and_gradients_of_the_whole_model_agree(strategy: str) -> None:
    arm = balance(**ARMS[strategy])
    model = build(model_config(num_hidden_layers=4), balance=arm)
    generator = torch.Generator().manual_seed(2)
    for moe in model.moe_layers().values():
        moe.router.e_score_correction_bias.copy_(torch.rand(8, generator=generator) - 0.5)
    ids, labels = batch(model.config, 3, 6)
    with router_inputs(model) as seen:
        losses = model(ids, labels)
    assert len(seen) == 3
    total = torch.zeros((), dtype=torch.float64)
    for name, moe in model.moe_layers().items():
        logits_BSE = router_logits(model, name, seen[name][0], 3)
        loss, margin = by_formula(logits_BSE, moe.router.e_score_correction_bias, model, arm)
        assert margin > CLEAR, "another seed: a selection of this one is too close to compare"
        total = total + loss
    assert losses.balance.item() == pytest.approx(total.item(), rel=1e-5)
    require_equal_gradients(losses.balance, total, model)


def test_the_load_of_the_step_before() -> None:
    """`previous_step`: an even load in the first step, then f of the batch before."""
    arm = balance(**ARMS["aux_batch"], batch_counts="previous_step", aux_loss_scores="plain")
    model = build(model_config(), balance=arm)
    layers, c = model.moe_layers(), model.config
    ((name, moe),) = layers.items()
    losses, scores = [], []
    for seed in (1, 2):
        with router_inputs(model) as seen:
            losses.append(model(*batch(c, 2, 6, seed=seed)).balance.item())
        keep_for_next_step(layers, take_load(layers), arm)
        logits_BSE = router_logits(model, name, seen[name][0], 2)
        scores.append(oracle.scores_of(logits_BSE, c.scoring_func))
    before = oracle.routed(
        scores[0],
        moe.router.e_score_correction_bias.tolist(),
        top_k=c.num_experts_per_tok,
        n_group=c.n_group,
        topk_group=c.topk_group,
    )
    assert before.margin > CLEAR
    everybody = [[set(range(8))] * 6] * 2  # with top_k = 8 the load of every expert is 1
    even = oracle.batch_loss(scores[0], everybody, top_k=8, normalised=False)
    later = oracle.batch_loss(
        scores[1], before.selection, top_k=c.num_experts_per_tok, normalised=False
    )
    # FP32 sums of a few dozen scores.
    assert losses == pytest.approx([0.6 * even.item(), 0.6 * later.item()], rel=1e-5)


@given(
    counts=st.lists(st.integers(0, 10**6), min_size=1, max_size=12),
    rule=st.sampled_from(["sign", "zero_mean_sign", "proportional"]),
    speed=st.sampled_from([1e-3, 0.25]),
    fraction=st.sampled_from([1.0, 0.5, 0.0]),
)
@EXAMPLES
def test_bias_rules(counts: list[int], rule: str, speed: float, fraction: float) -> None:
    layers = {"a": counted_layer(counts), "b": counted_layer(counts[::-1])}
    before = torch.linspace(-0.75, 0.5, len(counts))
    for layer in layers.values():
        layer.router.e_score_correction_bias.copy_(before)
    arm = balance(strategy="aux_free", bias_update_speed=speed, bias_update_rule=rule)
    update_biases(layers, take_load(layers), arm, gamma=speed * fraction)
    for name, order in (("a", counts), ("b", counts[::-1])):
        moves = torch.tensor(oracle.bias_moves(order, rule, speed * fraction))
        moved = layers[name].router.e_score_correction_bias
        # One rounding of gamma * move and one of the sum, at biases below 1 (and moves up to
        # gamma * 11 of the proportional rule): an ulp each of FP32, 2^-23.
        torch.testing.assert_close(moved, before + moves, rtol=3e-7, atol=1.2e-7)
        if rule == "sign":
            assert torch.equal(moved, before + moves), "one product and one sum, rounded alike"
