"""Every product of a step is listed with its formats, and what is not as asked for ends the run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dsv3.engine.distributed import process_group
from dsv3.errors import NumericHealthError
from dsv3.model.backends.emulated import EmulatedExperts, EmulatedLinear
from dsv3.model.moe import MoE
from dsv3.ops import fp8_linear
from dsv3.ops.gemm_log import Gemm, GemmLog, in_backward, recording
from dsv3.train.gemm_check import Layers, asked_for, broken_promises
from dsv3.train.gemm_observer import observing
from dsv3.train.loop import Trainer, evaluate_now, train_step
from numerics.poison import differing, everything
from numerics.small_training import training

MTP = ["mtp=depth1", "balance=aux_free_seq"]
FP8 = "precision=fp8_block_emulated"
O_PROJ = "model.layers.1.self_attn.o_proj"
DOWN = "model.layers.2.mlp.experts.down_proj"
ATTENTION = ["kv_a_proj_with_mqa", "kv_b_proj", "q_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    torch.set_num_threads(1)
    with process_group("cpu"):
        yield


def layers_with_weights() -> set[str]:
    """By hand: three blocks, the first one dense, and one MTP module."""
    names = set()
    for block in range(4):
        of_block = [f"self_attn.{name}" for name in ATTENTION]
        of_block += [f"mlp.{name}" for name in MLP] if block == 0 else []
        if block > 0:
            of_block += [f"mlp.shared_experts.{name}" for name in MLP]
            of_block += ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        of_block += ["eh_proj"] if block == 3 else []
        names |= {f"model.layers.{block}.{name}" for name in of_block}
    return names


def first_step(trainer: Trainer) -> GemmLog:
    """What the proof records in the first step."""
    kept: list[GemmLog] = []
    judge = trainer.proof._judge

    def keep(*arguments: Any) -> Any:
        kept.append(trainer.proof._log)
        return judge(*arguments)

    trainer.proof._judge = keep
    train_step(trainer)
    return kept[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_product_is_seen_with_its_layer(precision: str) -> None:
    with training(*MTP, f"precision={precision}") as trainer:
        calls = first_step(trainer).calls
    kinds = {(gemm.layer, gemm.kind) for gemm in calls}
    of_layers = {
        *layers_with_weights(),
        "lm_head",
        *(f"model.layers.{n}.mlp.gate" for n in (1, 2, 3)),
    }
    expected = {(layer, kind) for layer in of_layers for kind in ("fprop", "dgrad", "wgrad")}
    attention = {f"model.layers.{n}.self_attn" for n in range(4)}
    expected |= {(layer, kind) for layer in attention for kind in ("fprop", "backward")}
    assert kinds == expected
    for gemm in calls:
        in_fp32 = precision == "fp32" or gemm.layer.endswith("mlp.gate")
        assert {gemm.left, gemm.right, gemm.output} == {"fp32" if in_fp32 else "bf16"}, gemm
    # The head's products come in the main pass and in that of the MTP module.
    once = {gemm: count for gemm, count in calls.items() if gemm.layer != "lm_head"}
    assert set(once.values()) == {1}


# Of each policy, what runs again: nothing, what is expanded from the latents, FFNs, whole blocks.
AGAIN = {
    "none": set(),
    "norm_and_up_projection": {"self_attn.kv_b_proj", "self_attn.q_proj"},
    "moe": {"mlp.gate", "mlp.experts.gate_up_proj"},
    "full": {"self_attn.o_proj", "self_attn", "mlp.gate", "mlp.experts.gate_up_proj"},
}


@pytest.mark.parametrize("recompute", AGAIN)
def test_what_recomputation_runs_is_told_apart(recompute: str) -> None:
    with training(*MTP, "precision=bf16", f"recompute={recompute}") as trainer:
        calls = first_step(trainer).calls
    again = {gemm.layer for gemm in calls if gemm.recomputed}
    assert all(gemm.kind == "fprop" for gemm in calls if gemm.recomputed)
    assert {f"model.layers.1.{name}" for name in AGAIN[recompute]} <= again
    assert bool(again) == (recompute != "none")
    # It stops with the last thing that is needed, which is not the last product.
    others = {"none": ["self_attn"], "norm_and_up_projection": ["self_attn.o_proj", "mlp.gate"]}
    others |= {"moe": ["self_attn.o_proj", "self_attn"], "full": []}
    assert not again & {f"model.layers.1.{name}" for name in others[recompute]}


BITS = [
    ("precision=fp32", "recompute=none"),
    ("precision=bf16", "recompute=norm_and_up_projection"),
    (FP8, "recompute=norm_and_up_projection"),
    (FP8, "recompute=full"),
    ("precision=fp32", "recompute=moe", "balance=aux_batch"),
]


@pytest.mark.parametrize("overrides", BITS, ids=" ".join)
def test_a_recorded_step_has_the_bits_of_another(overrides: tuple[str, ...]) -> None:
    found = []
    for recorded in (True, False):
        with training(*MTP, *overrides, "schedule.micro_batch_size=2") as trainer:
            if not recorded:
                trainer.proof._due = False
                trainer.proof._is_measured = lambda _step: False
            line = train_step(trainer)
            found.append((everything(trainer), line["loss"], line["grad_norm"]))
    (ours, *figures), (theirs, *others) = found
    assert figures == others
    assert differing(ours, theirs) == []


def of_layer(trainer: Trainer, name: str, kind: type[nn.Module]) -> nn.Module:
    layer = trainer.engine.module.get_submodule(name)
    assert isinstance(layer, kind)
    return layer


def plain(trainer: Trainer, _: pytest.MonkeyPatch) -> None:
    """A layer that silently is one of torch's."""
    parent, _, name = O_PROJ.rpartition(".")
    layer = of_layer(trainer, O_PROJ, EmulatedLinear)
    linear = nn.Linear(1, 1, bias=False)
    linear.weight = layer.weight
    setattr(trainer.engine.module.get_submodule(parent), name, linear)


class Fallback(torch.autograd.Function):
    """Keeps what the FP8 layer keeps, so that torch's own check of a recomputation passes."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any) -> Any:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight)


def falls_back_in_recomputation(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
    layer = of_layer(trainer, O_PROJ, EmulatedLinear)
    in_fp8 = layer.forward
    either = lambda x: Fallback.apply(x, layer.weight) if in_backward() else in_fp8(x)  # noqa: E731
    patch.setattr(layer, "forward", either)


def gradient_in_bf16(_: Trainer, patch: pytest.MonkeyPatch) -> None:
    in_fp8 = fp8_linear.dgrad

    def dgrad(site: Any, dy_TO: Any, weight: Any, dtype: Any) -> Any:
        if site.layer != O_PROJ:
            return in_fp8(site, dy_TO, weight, dtype)
        fp8_linear.note(Gemm(site.layer, "dgrad", "bf16", "bf16", "bf16"))
        return (dy_TO @ weight.values.to(dy_TO.dtype)).to(dtype)

    patch.setattr(fp8_linear, "dgrad", dgrad)


def gradient_unsaid(_: Trainer, patch: pytest.MonkeyPatch) -> None:
    """In something that nobody can see, and that does not say what it does."""
    ran = fp8_linear.Site.ran

    def silent(site: Any, kind: Any, *formats: Any) -> None:
        if (site.layer, kind) != (DOWN, "wgrad"):
            ran(site, kind, *formats)

    patch.setattr(fp8_linear.Site, "ran", silent)


def other_tiles(trainer: Trainer, _: pytest.MonkeyPatch) -> None:
    layer = of_layer(trainer, O_PROJ, EmulatedLinear)
    layer.fp8 = layer.fp8._replace(dgrad_blocks=True)


def other_scales(trainer: Trainer, _: pytest.MonkeyPatch) -> None:
    layer = of_layer(trainer, DOWN.rpartition(".")[0], EmulatedExperts)
    layer.fp8 = layer.fp8._replace(power_of_two=False)


BROKEN = {
    plain: f"{O_PROJ}: fprop ran in bf16 x bf16",
    falls_back_in_recomputation: f"{O_PROJ}: fprop in recomputation ran in bf16 x bf16;",
    gradient_in_bf16: f"{O_PROJ}: dgrad ran in bf16 x bf16;",
    gradient_unsaid: f"{DOWN}: wgrad was not seen;",
    other_tiles: f"{O_PROJ}: dgrad ran in e4m3 128x128 power_of_two x e4m3 128x128 power_of_two;",
    other_scales: f"{DOWN}: fprop ran in e4m3 1x128 fp32 x e4m3 128x128 fp32,",
}


@pytest.mark.parametrize("fault", BROKEN, ids=lambda fault: fault.__name__)
def test_fp8_that_is_not_there_ends_the_run(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with training(*MTP, FP8, "recompute=full") as trainer:
        fault(trainer, monkeypatch)
        before = everything(trainer)
        with pytest.raises(NumericHealthError) as caught:
            train_step(trainer)
        touched = differing(everything(trainer), before)
    assert [name for name in touched if not name.startswith("buffers/")] == []  # the counters
    assert caught.value.exit_code == 5
    text = str(caught.value)
    assert text.startswith("precision.recipe=fp8_block_emulated: ")
    assert BROKEN[fault] in text
    layers = {problem.rule.partition(":")[0] for problem in caught.value.problems}
    experts = DOWN.rpartition(".")[0]
    two = {f"{experts}.gate_up_proj", DOWN}
    assert layers == (two if fault is other_scales else {BROKEN[fault].partition(":")[0]})
    if fault is plain:
        for kind in ("dgrad", "wgrad"):
            assert f"{kind} ran in bf16 x bf16" in text


def test_an_evaluation_without_fp8_ends_the_run() -> None:
    with training(*MTP, FP8) as trainer:
        train_step(trainer)
        evaluate_nothing(trainer)
        layer = of_layer(trainer, O_PROJ, EmulatedLinear)
        layer.forward = lambda x: F.linear(x, layer.weight)
        with pytest.raises(NumericHealthError, match=f"{O_PROJ}: fprop ran in bf16 x bf16"):
            evaluate_nothing(trainer)


def evaluate_nothing(trainer: Trainer) -> None:
    """An evaluation whose files are not written."""
    from dsv3.train import loop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_evaluation", lambda *_, **__: None)
        evaluate_now(trainer)


def test_only_the_first_step_of_an_attempt_is_judged() -> None:
    with training(FP8) as trainer:
        train_step(trainer)
        plain(trainer, pytest.MonkeyPatch())
        train_step(trainer)  # nobody looks: what is recorded costs
        trainer.proof._due = True
        with pytest.raises(NumericHealthError, match=O_PROJ):
            train_step(trainer)


@pytest.mark.parametrize("further", ["precision.dgrad_tiling=block", "precision.scales=fp32"])
def test_other_recipes_get_what_they_ask_for(further: str) -> None:
    with training(FP8, further) as trainer:
        asked = asked_for(trainer.config.precision)
        calls = first_step(trainer).calls
    assert asked is not None
    in_fp8 = {(g.kind, g.left, g.right) for g in calls if g.left.startswith("e4m3")}
    assert in_fp8 == {(kind, *formats) for kind, formats in asked.items()}


def test_experts_without_a_token_break_no_promise() -> None:
    with training(FP8) as trainer:
        module, asked = trainer.engine.module, asked_for(trainer.config.precision)
        assert asked is not None
        moe = module.get_submodule("model.layers.1.mlp")
        assert isinstance(moe, MoE)
        width = trainer.config.model.hidden_size
        with recording() as log, observing(module) as rows:
            for count in (0, 4):
                of_experts = torch.zeros(8, dtype=torch.int64)
                of_experts[0] = count
                before = rows["model.layers.1.mlp.experts"]
                moe.experts(torch.ones(4, width).bfloat16(), torch.ones(4), of_experts)
                assert rows["model.layers.1.mlp.experts"] - before == count
        # Ours say what they do also without rows; a kernel that is not called cannot.
        assert {gemm.layer for gemm in log.calls} == {
            "model.layers.1.mlp.experts.gate_up_proj",
            "model.layers.1.mlp.experts.down_proj",
        }
    silent = broken_promises([], Layers([DOWN]), asked, ["fprop", "wgrad"])
    assert silent == {DOWN: ["fprop was not seen", "wgrad was not seen"]}
    assert broken_promises([], Layers([DOWN], idle=[DOWN]), asked, ["fprop", "wgrad"]) == {}
    fell_back = [Gemm(DOWN, "fprop", "bf16", "bf16", "bf16")]
    assert broken_promises(fell_back, Layers([DOWN], idle=[DOWN]), asked, ["fprop"])


@contextmanager
def alarms_of(trainer: Trainer) -> Iterator[list[Any]]:
    told: list[Any] = []
    trainer.reporter.alarm = told.append
    yield told


def test_ranges_of_operands_are_in_the_lines_of_windows() -> None:
    limits = ["health.window_steps=3", "health.largest_fp8_underflow=0.9"]
    with training(*MTP, FP8, *limits) as trainer, alarms_of(trainer) as told:
        lines = [train_step(trainer) for _ in range(4)]
        assert [line["step"] for line in lines if "fp8_ranges" in line] == [1, 3]
        for line in (lines[0], lines[2]):
            ranges = line["fp8_ranges"]
            assert set(ranges) == layers_with_weights()
            operands = {"input", "weight", "gradient", "gradient for weights"}
            assert all(set(of_layer) == operands for of_layer in ranges.values())
            shares = [row[4] for of_layer in ranges.values() for row in of_layer.values()]
            assert line["fp8_underflow"] == pytest.approx(max(shares), rel=1e-3)
            assert line["fp8_overflow"] == 0
        weight = trainer.engine.module.get_parameter(f"{O_PROJ}.weight").detach()
        assert lines[2]["fp8_ranges"][O_PROJ]["weight"][0] == pytest.approx(
            float(weight.abs().max()), rel=0.05
        )
    assert not [alarm for alarm in told if alarm.alarm.startswith("fp8")]


def test_saturation_is_an_alarm() -> None:
    limits = ["health.window_steps=2", "health.largest_fp8_overflow=0.1"]
    with training(*MTP, FP8, *limits) as trainer, alarms_of(trainer) as told:
        layer = of_layer(trainer, O_PROJ, EmulatedLinear)
        # A tile with an infinity has scale 1: all above 448 is cut to it, and nobody sees it later.
        too_large = lambda _m, inputs: (inputs[0] + torch.inf,)  # noqa: E731
        handle = layer.register_forward_pre_hook(too_large)
        train_step(trainer), train_step(trainer)
        handle.remove()
        train_step(trainer), train_step(trainer)
    of_fp8 = [alarm for alarm in told if alarm.alarm == "fp8_overflow"]
    assert [(alarm.begins, alarm.step, alarm.layers) for alarm in of_fp8] == [
        (True, 1, [1]),
        (False, 4, [1]),
    ]
    assert of_fp8[0].value == 1
    assert of_fp8[0].details()["operand"] == f"input of {O_PROJ}"
    assert "alarm fp8_overflow in layer 1: share cut" in str(of_fp8[0])
