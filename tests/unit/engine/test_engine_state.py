"""What the engine exposes: fragments, groups, masters, evaluation, loading."""

import math

import pytest
import torch

from dsv3.engine.groups import parameter_groups, wrap
from dsv3.engine.zero import sum_of_squares

NAMES = {"embed.weight", "norm.weight", "experts.down_proj", "head.weight"}
RECIPES = [("fp32", 1), ("fp32", 2), ("bf16", 1), ("bf16", 2)]
DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.mark.parametrize(("recipe", "zero_stage"), RECIPES)
def test_fragments_are_the_whole_state_under_canonical_names(
    engine_of, batches, recipe, zero_stage
):
    engine = engine_of(recipe, zero_stage)
    model = engine.module
    assert {f.key for f in engine.fragments()} == {f"master/{n}" for n in NAMES} | {
        "buffer/e_score_correction_bias"
    }
    for step in range(1, 4):
        engine.train_step(batches(step, 2, DTYPE[recipe]), lr=1e-2)
        assert engine.optimizer_step == step
    found = {f.key: f for f in engine.fragments()}
    kinds = ("master", "exp_avg", "exp_avg_sq")
    assert found.keys() == {f"{kind}/{n}" for kind in kinds for n in NAMES} | {
        "buffer/e_score_correction_bias"
    }
    for name, parameter in model.named_parameters():
        for kind in kinds:
            fragment = found[f"{kind}/{name}"]
            assert fragment.shape == tuple(parameter.shape)
            assert (fragment.offset, fragment.data.numel()) == (0, parameter.numel())
            assert fragment.data.dtype == torch.float32
            assert fragment.saved_here
        master = found[f"master/{name}"].data.view(parameter.shape)
        assert torch.equal(master.to(parameter.dtype), parameter)
    shapes = {f.key: (f.shape, f.data.dtype) for f in found.values()}
    assert engine.expected_tensors(3) == shapes
    assert engine.expected_tensors(0).keys() == {k for k in shapes if k[:3] in ("mas", "buf")}


def test_a_fragment_is_live_memory(engine_of, batches):
    engine = engine_of()
    engine.train_step(batches(1, 1), lr=1e-2)
    fragments = {f.key: f.data for f in engine.fragments()}
    fragments["buffer/e_score_correction_bias"][2] = 7.0
    assert engine.module.e_score_correction_bias[2] == 7.0
    fragments["master/head.weight"].fill_(0.25)
    engine.finish_load()
    assert torch.equal(engine.module.head.weight, torch.full((5, 13), 0.25))


@pytest.mark.parametrize(("recipe", "zero_stage"), RECIPES)
@pytest.mark.parametrize("into", ["fresh", "used"])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_loaded_engine_goes_on_bit_for_bit(
    engine_of, batches, snapshot, recipe, zero_stage, into, steps
):
    source = engine_of(recipe, zero_stage)
    for step in range(steps):
        source.train_step(batches(step, 2, DTYPE[recipe]), lr=1e-2)
    source.module.e_score_correction_bias.uniform_()
    saved = snapshot(source)

    target = engine_of(recipe, zero_stage, seed=5)
    if into == "used":
        for step in range(2):
            target.train_step(batches(50 + step, 2, DTYPE[recipe]), lr=1e-2)
    target.prepare_load(steps)
    fragments = {f.key: f for f in target.fragments()}
    assert fragments.keys() == target.expected_tensors(steps).keys()
    for key, fragment in fragments.items():
        fragment.data.copy_(saved[key])
    target.finish_load()
    assert target.optimizer_step == steps
    for step in range(3):
        step_batches = batches(10 + step, 2, DTYPE[recipe])
        results = [e.train_step(step_batches, lr=1e-2) for e in (source, target)]
        assert results[0] == results[1]
    left, right = snapshot(source), snapshot(target)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_masters_keep_what_bf16_would_round_away(engine_of, net):
    value = 1 + 2**-12
    engine = engine_of("bf16")
    engine.set_masters(lambda name: torch.full(dict(net().named_parameters())[name].shape, value))
    for fragment in engine.fragments():
        if fragment.key.startswith("master/"):
            assert torch.equal(fragment.data, torch.full_like(fragment.data, value))
    assert torch.equal(engine.module.head.weight, torch.ones(5, 13, dtype=torch.bfloat16))
    with pytest.raises(AssertionError, match="bfloat16"):
        engine.set_masters(lambda _name: torch.ones(5, 13, dtype=torch.bfloat16))


def test_groups_decay_matrices_only_and_keep_experts_apart(net):
    model = net()
    wrapped = wrap(model, expert_parallel_size=1, expert_parameter=lambda n: "experts." in n)
    groups = {
        (g["name"], g["weight_decay"], g.get("moe", False)): len(g["params"])
        for g in parameter_groups(model, weight_decay=0.1)
    }
    assert groups == {
        ("dense_decayed", 0.1, False): 2,
        ("dense_not_decayed", 0.0, False): 1,
        ("ep_size_1", 0.1, True): 1,
    }
    assert list(wrapped.marker.parameters()) == []
    assert "marker" not in dict(model.named_modules())
    assert list(model.state_dict()) == list(net().state_dict())


def test_a_model_without_experts_needs_no_marker(engine_of, batches):
    from torch import nn

    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(7, 5, bias=False)

        def forward(self, inputs, labels):
            return nn.functional.cross_entropy(self.head(inputs), labels)

    engine = engine_of(model=Dense())
    assert not engine._engine.has_moe_layers
    assert engine.train_step(batches(1, 1), lr=1e-2).loss > 0
    assert engine_of()._engine.has_moe_layers


def test_evaluation_leaves_no_gradient_and_restores_the_mode(engine_of, batches, snapshot):
    engine, twin = engine_of(), engine_of()
    [batch] = batches(1, 1)
    with engine.evaluating() as module:
        assert not module.training
        loss = module(*batch)
        assert not loss.requires_grad
    assert engine.module.training
    with pytest.raises(RuntimeError, match="stop"), engine.evaluating():
        raise RuntimeError("stop")
    assert engine.module.training
    assert int(engine.module.tokens_per_expert_E.sum()) == 0
    results = [e.train_step([batch], lr=1e-2) for e in (engine, twin)]
    assert results[0] == results[1]
    assert results[0].loss == float(loss)


def test_the_sum_of_squares_is_exact_where_fp32_is_not():
    tensor = torch.randn(3_000_017, generator=torch.Generator().manual_seed(0)) * 1e-3
    exact = tensor.double().square().sum()
    # FP32 within chunks of 4096 only: eps * sqrt(4096) / sqrt(chunks) is far below 1e-7.
    assert math.isclose(sum_of_squares(tensor), exact, rel_tol=1e-7)
    assert not math.isclose(torch.linalg.vector_norm(tensor).square(), exact, rel_tol=1e-7)
    assert sum_of_squares(torch.tensor([3.0, 4.0])) == 25.0
    assert sum_of_squares(torch.zeros(0)) == 0.0


def test_the_engine_closes_and_the_module_stays_usable(engine_of, batches):
    engine = engine_of()
    engine.train_step(batches(1, 1), lr=1e-2)
    engine.close()
    loss = engine.module(*batches(2, 1)[0])
    loss.backward()
    assert engine.module.head.weight.grad is not None
