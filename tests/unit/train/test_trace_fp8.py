"""Traces of FP8: stand-ins against what they stand for, bodies of operators, plan against trace."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dsv3.config.compose import compose
from dsv3.config.root import RunConfig
from dsv3.ops.fp8_linear import Fp8, fp8_linear
from dsv3.plan.fp8_copies import copies_of
from dsv3.plan.peak import peak_memory
from dsv3.train.trace import Trace, trace
from dsv3.train.trace_backends import StandInBackend
from dsv3.train.trace_memory import Ledger
from dsv3.train.trace_workspace import workspace
from unit.model.test_te_recipes import package

ROOT = Path(__file__).resolve().parents[3]
SMALL = (
    "model=moe_nano",
    "model.hidden_size=256",
    "model.num_hidden_layers=3",
    "model.vocab_size=512",
    "model.moe_intermediate_size=256",
    "model.kv_lora_rank=32",
    "model.qk_rope_head_dim=32",
    "schedule.sequence_length=256",
    "schedule.global_batch_size=8",
    "schedule.batch_size_quantum=8",
)
PRECISIONS = {
    "fp8_block": ("precision=fp8_block",),
    "fp8_current": ("precision=fp8_current",),
    "mxfp8": ("precision=mxfp8",),
    "emulated": ("precision=fp8_block_emulated",),
    "emulated on a CPU": ("precision=fp8_block_emulated", "launcher.device=cpu"),
    "te bf16": ("precision=bf16", "precision.backend=te"),
}


KEPT = ("activations", "dispatch", "logits", "fp8 copies")
HEADS_OF_V3 = ("model.qk_nope_head_dim=128", "model.qk_rope_head_dim=64", "model.v_head_dim=128")
"""For which Transformer Engine's attention is used."""


def small(*overrides: str) -> RunConfig:
    return compose([*SMALL, *overrides]).config


def test_copies_have_the_packages_shapes() -> None:
    """By hand from `get_scale_shape` of its quantisers: rows of 4, of 128, tiles of 128 and 32."""
    by_row, by_column = copies_of("fp8_block", 258, 576, is_weight=False)
    assert by_row == (258 * 576, 5 * 260, 4) and by_column == (258 * 576, 3 * 576, 4)
    by_row, by_column = copies_of("fp8_block", 258, 576, is_weight=True)
    assert by_row == (258 * 576, 3 * 8, 4) and by_column == (258 * 576, 5 * 4, 4)
    by_row, by_column = copies_of("mxfp8", 288, 576, is_weight=True)
    assert by_row == (288 * 576, 384 * 20, 1) and by_column == (288 * 576, 12 * 640, 1)
    by_row, by_column = copies_of("fp8_current", 258, 576, is_weight=False)
    assert by_row == by_column == (258 * 576, 1, 4)


def test_a_layer_keeps_columns_of_its_input_and_both_copies_of_its_weight() -> None:
    rows, wide_in, wide_out = 256, 512, 1024
    backend = StandInBackend(small("precision=fp8_block").precision)
    with FakeTensorMode():
        linear = backend.linear(wide_in, wide_out)
        linear.weight = torch.nn.Parameter(linear.weight.bfloat16())
        backend.prepare(torch.nn.ModuleList([linear]))
        x = torch.zeros(rows, wide_in, dtype=torch.bfloat16, requires_grad=True)
        ledger = Ledger(lambda func, args: 0, [x, *linear.parameters()])
        with ledger:
            out = linear(x)
            forward = ledger.cut()
            torch.autograd.backward(out, torch.empty_like(out))
            ledger.cut()
    columns = rows * wide_in + rows // 128 * wide_in * 4
    of_weight = 2 * wide_in * wide_out + (8 * 4 + 4 * 8) * 4
    assert forward.end == out.nbytes + columns + of_weight
    assert forward.peak == forward.end + columns  # the copy by row, which has as many scales
    [weight] = linear.parameters()
    assert x.grad is not None and weight.grad is not None
    assert (x.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.slow
def test_the_packages_own_python_allocates_what_the_stand_ins_do() -> None:
    """Most and left, forward and backward, of every layer in every recipe: te_allocations.py."""
    paths = (package().parent, ROOT / "src", ROOT / "tests")
    done = subprocess.run(
        [sys.executable, "-m", "unit.train.te_allocations"],
        env={"PYTHONPATH": ":".join(map(str, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 16
    for name, (theirs, ours) in found.items():
        assert min(theirs) > 0
        # A number for each tensor more or less: scales, and their sums over experts.
        assert ours == pytest.approx(theirs, abs=64), name


def test_the_body_of_an_operator_is_what_is_charged_beside_its_result() -> None:
    rows, wide_in, wide_out = 256, 512, 128
    fp8 = Fp8().packed()
    with FakeTensorMode():
        x = torch.empty(2, rows // 2, wide_in, dtype=torch.bfloat16)  # of which a view is made
        weight = torch.empty(wide_out, wide_in, dtype=torch.bfloat16)
        inside = workspace(torch.ops.dsv3.fp8_linear.default, (x, weight, fp8, "a"), "cuda")
    # x is rounded: an FP32 copy of it, its magnitudes, and its largest ones. The result is smaller.
    most = 2 * 4 * rows * wide_in + 4 * rows * (wide_in // 128)
    result = 2 * rows * wide_out
    assert most - result <= inside <= 1.02 * (most - result)


def test_a_body_takes_nothing_of_what_it_is_given() -> None:
    with FakeTensorMode():
        x = torch.zeros(2, 128, 512, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.zeros(128, 512, dtype=torch.bfloat16, requires_grad=True)
        ledger = Ledger(lambda func, args: workspace(func, args, "cuda"), [x, weight])
        with ledger:
            out = fp8_linear(x, weight, Fp8(), "a")
            stretch = ledger.cut()
            assert stretch.end == out.nbytes
            assert stretch.peak > 2 * 4 * x.numel()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "layout", [("parallelism=single", "mtp=depth1"), ("parallelism=ep2", "recompute=none")]
)
def test_every_precision_is_traced_and_planned_alike(
    precision: str, layout: tuple[str, ...]
) -> None:
    compare(small(*layout, *PRECISIONS[precision]), within=0.03)


@pytest.mark.parametrize("precision", ["fp8_block", "emulated", "te bf16"])
def test_where_weights_are_large_and_tokens_few(precision: str) -> None:
    """There gradients in FP32, and what is made of a weight, are most of a backward pass."""
    of_weights = ("model.num_hidden_layers=2", "model.intermediate_size=16384")
    few = ("schedule.sequence_length=128", "schedule.micro_batch_size=1")  # as long as a tile
    config = small("parallelism=single", *of_weights, *few, *PRECISIONS[precision])
    [stage] = trace(config, max_violation=0.0).stages
    formula = peak_memory(config, max_violation=0.0, device="cuda").largest
    assert formula.moment == "backward"
    planned = sum(formula.parts.get(part, 0) for part in (*KEPT, "working"))
    most = stage.kept_bytes[0] + stage.passes.of["backward", 0][-1].memory.peak
    assert planned == pytest.approx(most, rel=0.05)


@pytest.mark.parametrize("policy", ["none", "norm_and_up_projection", "moe", "full"])
@pytest.mark.parametrize("precision", ["fp8_block", "emulated", "te bf16"])
@pytest.mark.parametrize("heads", [(), HEADS_OF_V3])
def test_plan_and_trace_keep_the_same(heads: tuple[str, ...], precision: str, policy: str) -> None:
    overrides = ("parallelism=single", f"recompute={policy}", *PRECISIONS[precision], *heads)
    config = small(*overrides)
    [stage] = trace(config, max_violation=0.0).stages
    formula = peak_memory(config, max_violation=0.0, device="cuda").largest
    assert formula.in_flight == (1,)
    kept = sum(formula.parts.get(part, 0) for part in KEPT)
    # The plan takes room for rows that fill up experts as full, of which half is used.
    assert kept == pytest.approx(stage.kept_bytes[0], rel=0.015)


def test_copies_of_weights_are_there_once_for_every_micro_batch_under_way() -> None:
    first, _ = trace(small("parallelism=pp2", "precision=fp8_block"), max_violation=0.0).stages
    assert first.in_flight[0] > 1
    copies = [
        live
        for live in first.largest(1000)
        if live.made.dtype is torch.uint8 and len(live.made.shape) == 3
    ]
    in_flight = sum(first.in_flight)
    assert copies and all(live.number >= in_flight for live in copies), (copies, in_flight)


def compare(config: RunConfig, *, within: float) -> Trace:
    """Plan and trace of the same layers and rows: within the few per cent of the plan's formulas.

    They know each layer, and of the moments between two layers not every gradient.
    """
    found = trace(config, max_violation=0.0)
    planned = peak_memory(config, max_violation=0.0, device=found.device)
    for stage, formula in zip(found.stages, planned.stages, strict=True):
        assert formula.peak_bytes == pytest.approx(stage.peak_bytes, rel=within), formula
    return found
