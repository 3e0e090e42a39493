"""The peak of a rank: against what the allocator counted, and against tensors listed by hand."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsv3.config.compose import compose
from dsv3.config.root import RunConfig
from dsv3.plan.imbalance import rows_of_rank
from dsv3.plan.memory import state_bytes_per_rank
from dsv3.plan.memory_ops import GRADIENTS_FP32, Op, backward_peak, forward_peak
from dsv3.plan.memory_pass import pass_of
from dsv3.plan.peak import PeakMemory, peak_memory

MEASURED = Path(__file__).parents[3] / "docs" / "results" / "pipeline-and-memory.md"
LARGER = [
    *("model=moe_1b", "parallelism=single", "model.num_hidden_layers=3"),
    *("model.n_routed_experts=16", "schedule.sequence_length=1024", "schedule.global_batch_size=2"),
    *("schedule.batch_size_quantum=2", "schedule.micro_batch_size=2"),
]
KEPT = ("activations", "dispatch", "logits")


def peak(*overrides: str, **options: float) -> PeakMemory:
    return peak_memory(compose(list(overrides)).config, device="cpu", **options)  # type: ignore[arg-type]


def measured() -> Iterator[tuple[str, str, str, float, float]]:
    """Shape, precision, override, kept and peak in MB, from the page of results."""
    shape, precision = "moe_tiny", ""
    for line in MEASURED.read_text(encoding="utf-8").splitlines():
        if line.startswith("The same for a larger shape"):
            shape = "larger"
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells and cells[0] in ("FP32", "BF16") and "peak" in cells:
            precision = cells[0].lower()
        elif len(cells) >= 4 and precision and re.match(r"plain|`", cells[0]):
            override = "" if cells[0] == "plain" else cells[0].strip("`")
            kept, highest = (float(cell.split()[0]) for cell in cells[2:4])
            yield shape, precision, override, kept, highest


MEASUREMENTS = list(measured())


def test_the_page_has_rows_of_both_shapes_and_precisions() -> None:
    assert {row[:2] for row in MEASUREMENTS} == {
        ("moe_tiny", "fp32"),
        ("moe_tiny", "bf16"),
        ("larger", "fp32"),
    }
    assert len(MEASUREMENTS) == 21


@pytest.mark.parametrize(("shape", "precision", "override", "kept", "highest"), MEASUREMENTS)
def test_what_the_allocator_counted(
    shape: str, precision: str, override: str, kept: float, highest: float
) -> None:
    words = ["model=moe_tiny"] if shape == "moe_tiny" else LARGER
    found = peak(*words, f"precision={precision}", *([override] if override else [])).largest
    assert sum(found.parts.get(part, 0) for part in KEPT) / 1e6 == pytest.approx(kept, rel=5e-3)
    assert found.peak_bytes / 1e6 == pytest.approx(highest, rel=2e-2)


def test_a_fold_of_operations_by_hand() -> None:
    ops = [
        Op("a", kept=10, forward=5, backward=7, weights=(2,)),
        Op("b", kept=20, forward=1, backward=3),
    ]
    # Forward: 10 + 5, then 30 + 1. Backward: b at 30 + 3, then a at 10 + 7 + 4 x 2.
    assert forward_peak(ops) == 31
    assert backward_peak(ops, GRADIENTS_FP32) == 33
    heavy = [ops[0], Op("b", kept=1, backward=0, weights=(100,))]
    # The gradients of b stay: 10 + 7 + 400 + 8.
    assert backward_peak(heavy, GRADIENTS_FP32) == 425


def test_a_pipeline_stage_keeps_as_many_micro_batches_as_stages_follow_it() -> None:
    words = ["model=moe_nano", "parallelism=pp4", "schedule.micro_batch_size=1"]
    found = peak(*words, "precision=bf16")
    assert [max(stage.in_flight) for stage in found.stages] == [4, 3, 2, 1]
    one = found.stages[1].parts["activations"] / 3
    assert found.stages[2].parts["activations"] == 2 * one  # one layer each


def test_every_policy_keeps_less_than_none_and_full_least() -> None:
    words = ["model=moe_228b", "precision=bf16"]
    none, moe, report, full = (
        peak_memory(compose([*words, f"recompute={policy}"]).config, device="cuda").bytes_per_rank
        for policy in ("none", "moe", "norm_and_up_projection", "full")
    )
    assert full < min(moe, report) and max(moe, report) < none


def test_an_uneven_load_costs_rows_up_to_what_a_token_can_send() -> None:
    config = compose(["model=moe_671b", "recompute=none"]).config
    even = rows_of_rank(config.model, config.parallelism, tokens=4096, max_violation=0.0)
    assert even == 4096 * 8
    twice = rows_of_rank(config.model, config.parallelism, tokens=4096, max_violation=1.0)
    assert twice == 2 * even
    # 64 ranks send at most all of their tokens to each of 4 experts here.
    most = rows_of_rank(config.model, config.parallelism, tokens=4096, max_violation=1e9)
    assert most == 64 * 4096 * 4
    single = compose(["model=moe_nano"]).config
    rows = rows_of_rank(single.model, single.parallelism, tokens=64, max_violation=1.0)
    assert rows == 128  # all rows are its own, however uneven
    sizes = [peak_memory(config, max_violation=load).bytes_per_rank for load in (0.0, 0.5, 1.0)]
    assert sizes[0] < sizes[1] < sizes[2]


def test_the_state_is_in_the_peak() -> None:
    for words in (["model=moe_16b"], ["model=moe_671b"], ["model=moe_nano", "precision=bf16"]):
        config = compose(words).config
        assert peak_memory(config).bytes_per_rank > state_bytes_per_rank(config).total


def test_beside_a_gpu_the_average_is_the_hosts() -> None:
    config = compose(["model=moe_nano", "ema=on"]).config
    weights = 1_524_992
    assert peak_memory(config, device="cuda").largest.host_bytes == 8 * weights
    on_cpu = peak_memory(config, device="cpu").largest
    assert (on_cpu.host_bytes, on_cpu.parts["average"]) == (0, 4 * weights)


def test_fp8_has_codes_both_ways_and_scales_and_keeps_narrower_inputs() -> None:
    def of(precision: str) -> dict[str, int]:
        words = ["model=moe_16b", f"precision={precision}"]
        return peak_memory(compose(words).config, device="cuda").largest.parts

    fp8, bf16 = of("fp8_block"), of("bf16")
    assert "fp8 copies" not in bf16
    # Of all weights but embedding, head and routers; norms are a ten-thousandth.
    others = 2 * 102_400 * 2048 + 26 * 64 * 2048
    codes = bf16["weights"] - 2 * others  # as many bytes as BF16 has: one each way
    assert fp8["fp8 copies"] == pytest.approx(codes * (1 + 4 / 128**2), rel=1e-3)
    assert fp8["activations"] < bf16["activations"]
    assert fp8["weights"] == bf16["weights"]


def test_fp8_copies_are_there_once_for_every_micro_batch_under_way() -> None:
    words = ["model=moe_671b", "precision=fp8_block"]
    plain, full = (
        peak_memory(compose([*words, f"recompute={policy}"]).config, device="cuda").stages[5]
        for policy in ("none", "full")
    )
    under_way = sum(plain.in_flight)
    assert under_way == 33
    # Two bytes for each weight of the layers, of which a stage has two in each part.
    once = plain.parts["weights"] * (1 + 4 / 128**2)
    assert plain.parts["fp8 copies"] == pytest.approx(once * under_way / 2, rel=0.01)
    assert "fp8 copies" not in full.parts


def test_transformer_engine_has_room_for_its_products() -> None:
    words = ["model=moe_16b", "precision=bf16"]
    engine = peak_memory(compose([*words, "precision.backend=te"]).config, device="cuda").largest
    plain = peak_memory(compose(words).config, device="cuda").largest
    assert engine.parts["room for products"] == 5 * (32 * 1024 * 1024 + 1024)
    assert "room for products" not in plain.parts


def test_bytes_kept_of_a_dense_layer_tensor_by_tensor() -> None:
    config = compose(["model=moe_nano", "precision=bf16"]).config
    p = pass_of(config, device="cpu", max_violation=0.0)
    rows, heads, half = 8 * 256, 4, 128
    wide, narrow = 4, 2
    by_hand = 2 * rows * wide  # 1 / rms of the two norms of the block
    by_hand += rows * wide  # and of the latent
    by_hand += 4 * rows * 128 * narrow  # both norms' inputs and outputs
    by_hand += rows * (32 + 8) * narrow + rows * 32 * narrow  # latent with rotary key, normed
    by_hand += 2 * rows * heads * 32 * narrow + 2 * rows * heads * 32 * narrow  # q, k, v, result
    by_hand += 8 * heads * (half * half + half * 256) * narrow  # probabilities of either half
    by_hand += 4 * rows * 352 * narrow  # gate, up, silu(gate), their product
    assert kept_of_layer(config, p) == by_hand


def kept_of_layer(config: RunConfig, p: object) -> int:
    from dsv3.plan.memory_blocks import block
    from dsv3.plan.memory_ops import GRADIENTS_BF16

    del config
    return block(p, GRADIENTS_BF16, is_moe=False).kept_in_all  # type: ignore[arg-type]
