"""Our layers over Transformer Engine, with a stand-in for it; what that proves: fake_te.py."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsv3.config.precision import PrecisionConfig
from dsv3.model.backends import Backend
from dsv3.model.backends.emulated import EmulatedBackend
from dsv3.model.backends.te import EngineExperts, EngineLinear, TransformerEngineBackend
from dsv3.model.backends.torch import TorchBackend
from dsv3.model.transformer import Transformer
from dsv3.ops.gemm_log import Gemm, GemmLog, recording
from numerics.small_model import batch, build, model_config, mtp
from unit.model import fake_te

BF16 = {"recipe": "bf16", "scales": None, "dgrad_tiling": None, "promote_every": None}
BLOCK = {
    "recipe": "fp8_block",
    "scales": "power_of_two",
    "dgrad_tiling": "tile",
    "promote_every": 128,
}
CURRENT = BF16 | {"recipe": "fp8_current", "scales": "fp32"}
MXFP8 = BF16 | {"recipe": "mxfp8", "scales": "power_of_two"}
WIDTHS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "num_experts_per_tok": 2,
}
EXPERTS = 4
POLICIES = ("full", "moe", "norm_and_up_projection")


def precision(values: dict[str, Any], backend: str = "te") -> PrecisionConfig:
    rest = {"backend": backend, "dispatch": "weights", "accumulate_bits": None}
    return PrecisionConfig.model_validate(rest | values)


def emulated(**changes: Any) -> EmulatedBackend:
    values = BLOCK | {"recipe": "fp8_block_emulated"} | changes
    return EmulatedBackend(precision(values, "emulated"))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    return fake_te.install(monkeypatch)


def small(backend: Backend, **arguments: Any) -> Transformer:
    config = model_config(**WIDTHS)
    model = build(config, dtype=torch.bfloat16, backend=backend, **arguments)
    backend.prepare(model)
    return model


def step(model: Transformer, length: int = 16) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one batch."""
    ids, labels = batch(model.config, 2, length)
    loss = model(ids, labels, torch.tensor(0.3)).objective
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def experts_of(backend: Backend, *, seed: int = 3) -> nn.Module:
    layer = backend.experts(EXPERTS, 32, 32).to(torch.bfloat16)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    holder = nn.ModuleDict({"experts": layer})
    backend.prepare(holder)
    return layer


def rows_of(real: list[int], multiple: int, fill: float, spare: int = 0) -> list[Tensor]:
    """Rows, weights and counts: `real` rows for each expert, filled up with rows of `fill`."""
    generator = torch.Generator().manual_seed(5)
    rows, weights, counts = [], [], []
    for count in real:
        padded = -count % multiple
        rows += [torch.randn(count, 32, generator=generator), torch.full((padded, 32), fill)]
        weights += [torch.rand(count, generator=generator) + 0.1, torch.zeros(padded)]
        counts.append(count + padded)
    rows.append(torch.full((spare, 32), torch.nan))
    weights.append(torch.zeros(spare))
    x = torch.cat(rows).to(torch.bfloat16).requires_grad_()
    return [x, torch.cat(weights).requires_grad_(), torch.tensor(counts)]


def gradients_of(layer: nn.Module, inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    rows, weights, counts = inputs
    used = int(counts.sum())
    out = layer(rows, weights, counts)
    leaves = [rows, weights, *layer.parameters()]
    found = torch.autograd.grad((out[:used].float() * upstream[:used]).sum(), leaves)
    return [out[:used].detach(), *found]


def test_the_state_is_that_of_torch_under_the_same_names(engine: Any) -> None:
    ours, reference = small(TransformerEngineBackend(precision(BF16))), small(TorchBackend())
    mine, wanted = ours.state_dict(), reference.state_dict()
    assert list(mine) == list(wanted)
    assert all(torch.equal(mine[name], wanted[name]) for name in wanted)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in reference.named_parameters()]


def test_bf16_is_torch_and_weights_have_fp32_gradients(engine: Any) -> None:
    loss, gradients = step(small(TransformerEngineBackend(precision(BF16))))
    wanted_loss, wanted = step(small(TorchBackend()))
    # Products summed in FP32 and rounded once on both sides, here and there in another order.
    torch.testing.assert_close(loss, wanted_loss, rtol=1e-3, atol=0)
    assert set(gradients) == set(wanted)
    for name, gradient in gradients.items():
        difference = (gradient - wanted[name].float()).norm()
        assert difference < 0.03 * wanted[name].float().norm() + 1e-6, name
        of_product = "proj" in name
        assert gradient.dtype == (torch.float32 if of_product else torch.bfloat16), name
    rounded = {n for n, g in gradients.items() if torch.equal(g, g.to(torch.bfloat16).to(g.dtype))}
    assert not any("o_proj" in name or "experts" in name for name in rounded)


def test_gradients_add_up_over_micro_batches(engine: Any) -> None:
    model = small(TransformerEngineBackend(precision(BLOCK)))
    _, once = step(model)
    once = {name: gradient.clone() for name, gradient in once.items()}
    _, twice = step(model)
    for name in (n for n in once if "proj" in n):
        torch.testing.assert_close(twice[name], 2 * once[name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("scales", ["power_of_two", "fp32"])
@pytest.mark.parametrize("length", [16, 13])
def test_fp8_is_the_emulation_to_the_bit(engine: Any, scales: str, length: int) -> None:
    """Same tiles, operands and rounding, though rows are filled up to 16 here and not there."""
    depth = {"mtp": mtp(1)}
    backend = TransformerEngineBackend(precision(BLOCK | {"scales": scales}))
    loss, gradients = step(small(backend, **depth), length)
    wanted_loss, wanted = step(small(emulated(scales=scales), **depth), length)
    assert torch.equal(loss, wanted_loss)
    for name in wanted:
        torch.testing.assert_close(gradients[name], wanted[name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    "real", [[5, 16, 1, 30], [0, 7, 20, 3], [4, 0, 9, 0], [0, 0, 0, 40], [0, 0, 0, 0]]
)
def test_rows_that_fill_up_have_no_say_in_scales(engine: Any, real: list[int]) -> None:
    """Whatever fills up an expert: the same output and gradients as with the real rows alone."""
    layer = experts_of(TransformerEngineBackend(precision(BLOCK)))
    reference = experts_of(emulated())
    upstream = torch.randn(sum(real) + 80, 32, generator=torch.Generator().manual_seed(8))
    compact = rows_of(real, 1, 0.0)
    wanted = gradients_of(reference, compact, upstream[: sum(real)])

    filled = rows_of(real, 16, 1e4, spare=6)
    keep = filled[1].detach() != 0
    spread = torch.full((len(keep), 32), 1e4)  # the gradient that fills up is as large
    spread[keep] = upstream[: sum(real)]
    found = gradients_of(layer, filled, spread)
    used = int(filled[2].sum())
    torch.testing.assert_close(found[0][keep[:used]], wanted[0], rtol=0, atol=0)
    torch.testing.assert_close(found[1][keep], wanted[1], rtol=0, atol=0)
    torch.testing.assert_close(found[2][keep], wanted[2], rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(found[3:], wanted[3:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert not found[1][~keep].any() and not found[1].isnan().any()


@pytest.mark.parametrize("values", [BF16, BLOCK, CURRENT, MXFP8], ids=lambda v: v["recipe"])
def test_an_expert_without_rows_has_a_gradient_of_zero(engine: Any, values: dict[str, Any]) -> None:
    backend = TransformerEngineBackend(precision(values))
    layer = experts_of(backend)
    multiple = backend.row_multiple(layer)
    for real in ([32, 0, 32, 0], [0, 0, 0, 0]):
        inputs = rows_of(real, multiple, 0.0)
        upstream = torch.ones(len(inputs[0]), 32)
        rows, weights, *projections = gradients_of(layer, inputs, upstream)[1:]
        assert rows.shape == inputs[0].shape and weights.shape == inputs[1].shape
        for projection in projections:
            assert projection.dtype == torch.float32
            assert projection.flatten(1).any(dim=1).tolist() == [count > 0 for count in real]


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_recomputed_is_in_fp8_and_the_same(engine: Any, policy: str) -> None:
    plain, again = (
        small(TransformerEngineBackend(precision(BLOCK)), recompute=p) for p in ("none", policy)
    )
    with recording() as once:
        loss, gradients = step(plain)
    with recording() as log:
        loss_again, gradients_again = step(again)
    assert torch.equal(loss, loss_again)
    assert all(torch.equal(gradients[name], gradients_again[name]) for name in gradients)
    forward = {g for g in once.calls if g.kind == "fprop"}
    anew = {g for g in log.calls if g.recomputed}
    assert anew
    assert {g._replace(recomputed=False) for g in anew} <= forward
    assert {g.left.split()[0] for g in log.calls} == {"e4m3"}


def test_the_log_names_every_product_and_its_formats(engine: Any) -> None:
    model = small(TransformerEngineBackend(precision(BLOCK)))
    layers = {name for name, m in model.named_modules() if isinstance(m, EngineLinear)}
    experts = {name for name, m in model.named_modules() if isinstance(m, EngineExperts)}
    layers |= {f"{name}.{leaf}" for name in experts for leaf in ("gate_up_proj", "down_proj")}
    with recording() as log:
        step(model)
    row, column, block = (f"e4m3 {t} power_of_two" for t in ("1x128", "128x1", "128x128"))
    for layer in layers:
        assert plain({g for g in log.calls if g.layer == layer}) == {
            ("fprop", row, block, "bf16"),
            ("dgrad", row, block, "bf16"),
            ("wgrad", column, column, "fp32"),
        }, layer
    assert {g.layer for g in log.calls} == layers
    roles = ("input", "weight", "gradient", "gradient for weights")
    assert set(log.ranges) == {(layer, role) for layer in layers for role in roles}


@pytest.mark.parametrize(
    ("values", "left", "right", "of_gradient"),
    [
        (BF16, "bf16", "bf16", "bf16"),
        (CURRENT, "e4m3 tensor fp32", "e4m3 tensor fp32", "e5m2 tensor fp32"),
        (MXFP8, "e4m3 1x32 power_of_two", "e4m3 1x32 power_of_two", "e4m3 1x32 power_of_two"),
        (
            BLOCK | {"scales": "fp32"},
            "e4m3 1x128 fp32",
            "e4m3 128x128 fp32",
            "e4m3 1x128 fp32",
        ),
    ],
    ids=["bf16", "fp8_current", "mxfp8", "fp8_block"],
)
def test_formats_of_every_recipe(
    engine: Any, values: dict[str, Any], left: str, right: str, of_gradient: str
) -> None:
    with recording() as log:
        step(small(TransformerEngineBackend(precision(values))))
    found = {(g.left, g.right) for g in log.calls if g.kind == "fprop"}
    assert found == {(left, right)}
    assert {g.left for g in log.calls if g.kind == "dgrad"} == {of_gradient}
    assert bool(log.ranges) == (values is not BF16)


def test_ranges_are_those_of_the_emulation(engine: Any) -> None:
    found: list[GemmLog] = []
    for backend in (TransformerEngineBackend(precision(BLOCK)), emulated()):
        with recording() as log:
            step(small(backend))
        found.append(log)
    engine_log, reference = found
    assert set(engine_log.ranges) == set(reference.ranges)
    for (layer, role), expected in reference.ranges.items():
        # Shares of an expert's tensors are those of the worst expert here, of all of them there.
        compared = 3 if ".experts." in layer else 5
        found_range = engine_log.ranges[layer, role][:compared]
        assert list(found_range) == pytest.approx(list(expected)[:compared]), (layer, role)


def test_a_layer_that_falls_back_says_so(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_te, "_fp8", lambda: None)
    with recording() as log:
        step(small(TransformerEngineBackend(precision(BLOCK))))
    assert {g.left for g in log.calls} == {"bf16"}


def test_nothing_is_noted_without_a_recording_and_a_second_backend_wraps_nothing(
    engine: Any,
) -> None:
    TransformerEngineBackend(precision(BLOCK))
    module = engine.module.linear
    once = module.general_gemm
    backend = TransformerEngineBackend(precision(BLOCK))
    assert module.general_gemm is once
    with recording() as log:
        pass
    step(small(backend))
    assert not log.calls and not log.ranges


def test_attention_is_the_engines_for_the_reports_heads_alone(engine: Any) -> None:
    backend = TransformerEngineBackend(precision(BF16))
    generator = torch.Generator().manual_seed(2)
    for widths, used in (((192, 128), True), ((64, 64), False)):
        q, k, v = (
            torch.randn(2, 3, 8, width, generator=generator, dtype=torch.float32).bfloat16()
            for width in (widths[0], widths[0], widths[1])
        )
        backend._attentions.clear()
        out = backend.attention(q, k, v, scale=0.1)
        expected = TorchBackend().attention(q, k, v, scale=0.1)
        torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)
        assert bool(backend._attentions) == used


def test_evaluation_without_gradients_takes_any_number_of_tokens(engine: Any) -> None:
    model = small(TransformerEngineBackend(precision(BLOCK)))
    ids, labels = batch(model.config, 1, 11)
    losses = model.token_losses(ids, labels)
    assert losses.shape == labels.shape and losses.isfinite().all()


def plain(gemms: set[Gemm]) -> set[tuple[str, str, str, str]]:
    return {(g.kind, g.left, g.right, g.output) for g in gemms}
