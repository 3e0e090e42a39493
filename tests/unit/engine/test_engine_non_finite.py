"""A NaN or infinity stops a step before anything changes, says where it is, and does no harm."""

import math

import pytest
import torch

from dsv3.engine.health import NonFiniteError, first_non_finite_module, non_finite_names
from dsv3.errors import NumericHealthError

RECIPES = [("fp32", 1), ("fp32", 2), ("bf16", 1), ("bf16", 2)]
DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}


def poisoned(batch, value):
    inputs, labels = batch
    inputs = inputs.clone()
    inputs[3, 2] = value
    return inputs, labels


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize(("recipe", "zero_stage"), RECIPES)
@pytest.mark.parametrize(("position", "value"), [(0, math.nan), (1, math.inf), (3, math.nan)])
def test_a_bad_loss_leaves_no_trace(
    engine_of, batches, snapshot, recipe, zero_stage, position, value
):
    engine, twin = (engine_of(recipe, zero_stage) for _ in range(2))
    for one in (engine, twin):
        one.train_step(batches(1, 2, DTYPE[recipe]), lr=1e-2)
    before = snapshot(engine)
    bad = batches(2, 4, DTYPE[recipe])
    bad[position] = poisoned(bad[position], value)
    with pytest.raises(NonFiniteError) as raised:
        engine.train_step(bad, lr=1e-2)
    assert isinstance(raised.value, NumericHealthError)
    assert raised.value.kind == "loss"
    assert not math.isfinite(raised.value.value)
    assert raised.value.names == ("embed",)
    assert "embed" in str(raised.value)
    assert same(snapshot(engine), before)
    # Going on is exactly as if the bad step had never been tried.
    results = [one.train_step(batches(3, 2, DTYPE[recipe]), lr=1e-2) for one in (engine, twin)]
    assert results[0] == results[1]
    assert same(snapshot(engine), snapshot(twin))


class GradientBomb(torch.autograd.Function):
    """Identity with a gradient that is not finite."""

    @staticmethod
    def forward(ctx, tensor):
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.inf


@pytest.mark.parametrize(("recipe", "zero_stage"), RECIPES)
def test_a_bad_gradient_leaves_no_trace_and_is_named(
    engine_of, batches, snapshot, recipe, zero_stage
):
    engine, twin = (engine_of(recipe, zero_stage) for _ in range(2))
    for one in (engine, twin):
        one.train_step(batches(1, 2, DTYPE[recipe]), lr=1e-2)
    before = snapshot(engine)
    hook = engine.module.norm.register_forward_hook(lambda _m, _i, out: GradientBomb.apply(out))
    with pytest.raises(NonFiniteError) as raised:
        engine.train_step(batches(2, 2, DTYPE[recipe]), lr=1e-2)
    hook.remove()
    assert raised.value.kind == "gradient norm"
    assert set(raised.value.names) == {"embed.weight", "norm.weight"}
    assert same(snapshot(engine), before)
    results = [one.train_step(batches(3, 2, DTYPE[recipe]), lr=1e-2) for one in (engine, twin)]
    assert results[0] == results[1]
    assert same(snapshot(engine), snapshot(twin))


def test_a_finite_gradient_whose_squares_overflow_is_refused(engine_of, batches, snapshot):
    engine = engine_of()
    before = snapshot(engine)
    hook = engine.module.register_forward_hook(lambda _m, _i, loss: loss * 1e30)
    with pytest.raises(NonFiniteError) as raised:
        engine.train_step(batches(1, 1), lr=1e-2)
    hook.remove()
    assert (raised.value.kind, raised.value.names) == ("gradient norm", ())
    assert same(snapshot(engine), before)


def test_an_interrupt_between_micro_batches_leaves_no_trace(engine_of, batches, snapshot):
    engine, twin = engine_of(), engine_of()
    calls = []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    hook = engine.module.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.train_step(batches(1, 3), lr=1e-2)
    hook.remove()
    for one in (engine, twin):
        one.train_step(batches(2, 3), lr=1e-2)
    assert same(snapshot(engine), snapshot(twin))


def test_looking_for_the_module_counts_no_tokens_and_keeps_the_mode(net, batches):
    model = net()
    [batch] = batches(1, 1)
    assert first_non_finite_module(model, batch) == []
    assert first_non_finite_module(model, poisoned(batch, math.nan)) == ["embed"]
    with torch.no_grad():
        model.head.weight[0, 0] = math.inf
    assert first_non_finite_module(model, batch) == ["head"]
    assert model.training
    assert int(model.tokens_per_expert_E.sum()) == 0
    assert not any(module._forward_hooks for module in model.modules())


def test_rows_that_nobody_wrote_are_not_blamed():
    class Padded(torch.nn.Module):
        def forward(self, rows, used):
            return torch.cat([rows, torch.full((3,), math.nan)])

        def used_rows(self, rows, used):
            return int(used)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.padded = Padded()
            self.after = torch.nn.Identity()

        def forward(self, rows, used):
            return self.after(self.padded(rows, used)[: int(used)]).sum()

    rows, used = torch.tensor([1.0, 2.0]), torch.tensor(2)
    assert first_non_finite_module(Model(), (rows, used)) == []
    assert first_non_finite_module(Model(), (rows * math.nan, used)) == ["padded"]


def test_only_a_few_names_are_listed():
    tensors = [(str(n), torch.tensor([0.0, math.nan if n % 2 else 0.0])) for n in range(40)]
    assert non_finite_names(tensors) == ["1", "3", "5", "7", "9"]
