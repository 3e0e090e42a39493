"""Moments in BF16: updated in FP32 by the formula, rounded to nearest, half the bytes, resumed."""

import math

import pytest
import torch
from torch import nn

from dsv3.config.compose import compose
from dsv3.plan.memory import BYTES_PER_MASTER, BYTES_PER_MOMENT

RECIPES = [("fp32", 1), ("fp32", 2), ("bf16", 1), ("bf16", 2)]
DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}
LR, STEPS = 1e-2, 4


@pytest.fixture
def optimizer_config():
    return compose(["optimizer.moment_dtype=bf16"]).config.optimizer


@pytest.fixture
def bf16_engine_of(net):
    from dsv3.engine.engine import TrainingEngine

    engines = []

    def build(recipe, zero_stage, seed=0):
        model = net(seed)
        initial = {name: p.detach().clone() for name, p in model.named_parameters()}
        config = compose(
            [
                f"precision={recipe}",
                f"parallelism.zero_stage={zero_stage}",
                "optimizer.moment_dtype=bf16",
            ]
        ).config
        engine = TrainingEngine(
            model, config, device="cpu", expert_parameter=lambda name: "experts." in name
        )
        engine.set_masters(initial.__getitem__)
        engines.append(engine)
        return engine

    yield build
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("grad_scale", [None, 3.0])
@pytest.mark.parametrize("chunk", [1 << 22, 7])  # 7: several chunks and a rest
def test_an_update_is_the_formula_with_rounded_moments(
    optimizer_config, monkeypatch, grad_scale, chunk
):
    from dsv3.engine import adamw

    monkeypatch.setattr(adamw, "CHUNK_ELEMENTS", chunk)
    generator = torch.Generator().manual_seed(1)
    weight = nn.Parameter(torch.randn(4, 5, generator=generator))
    optimizer = adamw.make_adamw([{"params": [weight], "weight_decay": 0.1}], optimizer_config)
    optimizer.param_groups[0]["lr"] = LR
    (beta1, beta2), eps = optimizer.param_groups[0]["betas"], optimizer_config.eps
    master = weight.detach().double()
    first = second = torch.zeros(4, 5, dtype=torch.float64)
    for step in range(1, STEPS + 1):
        weight.grad = torch.randn(4, 5, generator=generator)
        optimizer.grad_scale = None if grad_scale is None else torch.tensor(grad_scale)
        gradient = weight.grad.double() / (1.0 if grad_scale is None else grad_scale)
        optimizer.step()
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient.square()
        corrected = (second / (1 - beta2**step)).sqrt() + eps
        master = master * (1 - LR * 0.1) - LR / (1 - beta1**step) * first / corrected
        state = optimizer.state[weight]
        assert state["step"] == step
        for name, exact in (("exp_avg", first), ("exp_avg_sq", second)):
            assert state[name].dtype == torch.bfloat16
            # Half a last place of BF16; FP32 in between may fall over the border next to it.
            torch.testing.assert_close(state[name].double(), exact, rtol=2**-8, atol=0)
        # The next step starts from what was rounded, and the weight saw what was not.
        first, second = state["exp_avg"].double(), state["exp_avg_sq"].double()
        torch.testing.assert_close(weight.detach().double(), master, rtol=1e-5, atol=1e-7)
        master = weight.detach().double()


def test_a_step_equals_torchs_on_the_same_moments(optimizer_config):
    """The first step starts from zeros in either type: bit for bit torch's fused AdamW."""
    from dsv3.engine.adamw import make_adamw

    exact_config = optimizer_config.model_copy(update={"moment_dtype": "fp32"})
    weights, moments = [], []
    for config in (optimizer_config, exact_config):
        generator = torch.Generator().manual_seed(1)
        weight = nn.Parameter(torch.randn(9, generator=generator))
        weight.grad = torch.randn(9, generator=generator)
        optimizer = make_adamw([{"params": [weight]}], config)
        optimizer.param_groups[0]["lr"] = LR
        optimizer.step()
        weights.append(weight.detach())
        moments.append(optimizer.state[weight]["exp_avg"])
    assert torch.equal(*weights)
    assert torch.equal(moments[0], moments[1].bfloat16())
    assert not torch.equal(moments[0].float(), moments[1])


@pytest.mark.parametrize(("recipe", "zero_stage"), RECIPES)
def test_fragments_carry_the_type_and_a_loaded_engine_goes_on_bit_for_bit(
    bf16_engine_of, batches, snapshot, recipe, zero_stage
):
    source, target = bf16_engine_of(recipe, zero_stage), bf16_engine_of(recipe, zero_stage, seed=5)
    for step in range(3):
        source.train_step(batches(step, 2, DTYPE[recipe]), lr=LR)
    found = {f.key: (f.shape, f.data.dtype) for f in source.fragments()}
    assert found == source.expected_tensors(3)
    types = {key.split("/")[0]: dtype for key, (_, dtype) in found.items()}
    assert types["exp_avg"] == types["exp_avg_sq"] == torch.bfloat16
    assert types["master"] == torch.float32

    saved = snapshot(source)
    target.prepare_load(3)
    for fragment in target.fragments():
        assert fragment.data.dtype == saved[fragment.key].dtype
        fragment.data.copy_(saved[fragment.key])
    target.finish_load()
    for step in range(3):
        step_batches = batches(10 + step, 2, DTYPE[recipe])
        results = [e.train_step(step_batches, lr=LR) for e in (source, target)]
        assert results[0] == results[1]
    left, right = snapshot(source), snapshot(target)
    assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("moment_dtype", ["fp32", "bf16"])
def test_state_has_the_bytes_the_plan_says(bf16_engine_of, engine_of, batches, moment_dtype):
    engine = bf16_engine_of("fp32", 1) if moment_dtype == "bf16" else engine_of()
    engine.train_step(batches(1, 1), lr=LR)
    weights = sum(p.numel() for p in engine.module.parameters())
    held = sum(
        f.data.numel() * f.data.element_size()
        for f in engine.fragments()
        if not f.key.startswith("buffer/")
    )
    assert held == weights * (BYTES_PER_MASTER + 2 * BYTES_PER_MOMENT[moment_dtype])
    # None of it lies about a second time in FP32.
    base = engine._zero.base
    kept = {k: t.dtype for state in base.state.values() for k, t in state.items() if k != "step"}
    assert set(kept.values()) == {DTYPE[moment_dtype]}


def test_the_largest_beta_allowed_decays_and_a_larger_one_may_not():
    """The border of the rule: no BF16 number is a fixed point of the decay, or some are."""
    from dsv3.config.rules import LARGEST_BF16_BETA

    numbers = torch.arange(128, 256, dtype=torch.float32)  # every mantissa of BF16
    assert ((numbers * LARGEST_BF16_BETA).bfloat16() < numbers).all()
    assert ((numbers * 0.999).bfloat16() == numbers).all()
    assert math.isclose(1 - LARGEST_BF16_BETA, 2**-8, rel_tol=0.03)
