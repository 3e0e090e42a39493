"""The trace: storages from birth to death, a step made of passes against one that is run whole."""

import json
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dsv3.commands.plan import plan
from dsv3.config.compose import compose
from dsv3.config.root import RunConfig
from dsv3.engine.distributed import fake_process_group
from dsv3.errors import CapacityError, ConfigError
from dsv3.ops.experts import grouped_mlp
from dsv3.parallel import mail
from dsv3.parallel.mesh import place_of
from dsv3.parallel.schedule import actions
from dsv3.train import trace_step
from dsv3.train.trace import StageTrace, step_of, trace
from dsv3.train.trace_memory import Ledger
from dsv3.train.trace_passes import FEWEST, trace_passes
from dsv3.train.trace_step import ACTIVATIONS, MESSAGES

SMALL = (
    "model=moe_nano",
    "model.hidden_size=64",
    "model.vocab_size=512",
    "model.n_routed_experts=4",
    "schedule.sequence_length=32",
    "schedule.micro_batch_size=1",
)


def small(*overrides: str, batch: int = 8) -> RunConfig:
    size = (f"schedule.global_batch_size={batch}", f"schedule.batch_size_quantum={batch}")
    return compose([*SMALL, *size, *overrides]).config


def test_a_storage_counts_from_its_birth_to_the_death_of_its_last_view() -> None:
    ledger = Ledger(lambda func, args: 0)
    with FakeTensorMode(), ledger:
        first = torch.empty(100)
        view = first[:10]
        second = first + 1
        del first
        assert ledger.live == 800
        stretch = ledger.cut()
        assert (stretch.peak, stretch.end) == (800, 800)
        assert {made.operation for made in stretch.at_peak} == {
            "aten.empty.memory_format",
            "aten.add.Tensor",
        }
        del view, second
        assert ledger.live == 0
        stretch = ledger.cut()
    assert (stretch.peak, stretch.end, stretch.left) == (0, -800, [])


def test_a_peak_lies_between_two_cuts_and_has_its_label() -> None:
    ledger = Ledger(lambda func, args: 0)
    with FakeTensorMode(), ledger:
        with ledger.of("weights"):
            weight = torch.empty(10, 10)
        large = torch.empty(1000)
        del large
        stretch = ledger.cut()
        assert ledger.by_label() == {"weights": weight.nbytes}
    assert (stretch.peak, stretch.end) == (4400, 400)
    assert [made.size for made in stretch.at_peak] == [4000, 400]


def test_bytes_inside_of_an_operation_stand_beside_what_it_makes() -> None:
    inside = {torch.ops.aten.mm.default: 64}
    ledger = Ledger(lambda func, args: inside.get(func, 0))
    with FakeTensorMode(), ledger:
        left = torch.empty(4, 4)
        ledger.cut()
        product = left @ left
        stretch = ledger.cut()
        assert product.shape == (4, 4)
    assert (stretch.peak, stretch.end) == (128, 64)


@pytest.mark.parametrize(
    ("overrides", "batch"),
    [
        (("parallelism=single", "mtp=depth1"), 4),
        (("parallelism=single", "precision=bf16", "recompute=norm_and_up_projection"), 4),
        (("parallelism=ep2", "recompute=moe"), 8),
        (("parallelism=pp2", "mtp=depth1", "precision=bf16"), 6),
        (("parallelism=pp4", "parallelism.pipeline_schedule=1f1b"), 5),
        (("parallelism=pp2", "parallelism.pipeline_schedule=dualpipev", "recompute=full"), 6),
    ],
)
def test_a_step_from_few_passes_is_that_of_all_its_micro_batches(
    monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], batch: int
) -> None:
    for module in (mail, trace_step):  # so that the first messages are let go of in the step
        monkeypatch.setattr(module, "LARGEST_NUMBER_ON_THE_WAY", 2)
    config = small(*overrides, batch=batch)
    layout = config.parallelism
    assert config.gradient_accumulation_steps > FEWEST
    for rank in {0, layout.world_size - layout.data_parallel_size}:  # of the first and last stage
        composed = _trace(config, rank, FEWEST)
        whole = _peak_of_all(config, rank)
        assert composed.peak_bytes == pytest.approx(whole, rel=1e-3), composed.moment


def test_stages_of_one_program_are_what_each_of_them_is_alone() -> None:
    config = small("parallelism=pp4", "model.num_hidden_layers=8", batch=24)
    found = trace(config, max_violation=0.0, device="cpu")
    assert len({id(stage.passes) for stage in found.stages}) < len(found.stages)
    for stage in found.stages:
        assert stage.peak_bytes == _trace(config, stage.place.rank, FEWEST).peak_bytes


def test_messages_and_kept_activations_follow_the_schedule() -> None:
    config = small("parallelism=pp2", "precision=bf16", batch=80)
    first, last = trace(config, max_violation=0.0, device="cpu").stages
    hidden = 32 * config.model.hidden_size * 2  # bytes of [1, 32, D] in BF16
    assert first.in_flight == (2,)
    assert first.moment.parts[ACTIVATIONS] < 2 * first.kept_bytes[0] + hidden
    # 64 on their way: the first stage's hidden states, of which one or two wait for their backward.
    assert 62 * hidden <= first.moment.parts[MESSAGES] <= 64 * hidden
    assert 62 * hidden <= last.moment.parts[MESSAGES] <= 64 * hidden  # gradients


def test_a_heavier_load_takes_the_bytes_of_its_rows() -> None:
    config = small("parallelism=ep2", "recompute=none")
    even, heavy = (trace(config, max_violation=load, device="cpu").largest for load in (0.0, 0.5))
    tokens = config.schedule.sequence_length
    c, rows = config.model, tokens * config.model.num_experts_per_tok // 2
    # Of each row: itself as it arrives is gone; copied by expert, gate and up, and its way.
    widths = c.hidden_size + 2 * c.moe_intermediate_size
    least = rows * widths * 4 * c.num_moe_layers
    assert least <= heavy.kept_bytes[0] - even.kept_bytes[0] <= 1.2 * least


def test_the_experts_without_data_have_the_shapes_of_those_with() -> None:
    def run() -> list[tuple[torch.Size, torch.dtype]]:
        rows = torch.zeros(6, 8, requires_grad=True)
        weights = torch.zeros(6, requires_grad=True)
        gate_up, down = (torch.zeros(*s, requires_grad=True) for s in ((2, 8, 8), (2, 8, 4)))
        out = grouped_mlp(rows, weights, torch.tensor([2, 3]), gate_up, down)
        out.sum().backward()
        made = (out, *(leaf.grad for leaf in (rows, weights, gate_up, down)))
        return [(tensor.shape, tensor.dtype) for tensor in made if tensor is not None]

    with FakeTensorMode():
        fake = run()
    assert fake == run()


def test_a_group_that_is_not_there_names_the_ranks_and_goes_away() -> None:
    with fake_process_group(5, 8):
        assert torch.distributed.get_rank() == 5
        torch.distributed.all_reduce(torch.zeros(1))
    assert not torch.distributed.is_initialized()


def test_stand_ins_are_told_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, "parallelism=single", "model.qk_rope_head_dim=16"]
    assert _plan([*words, "precision=fp8_block"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "what its source says" in text and "never measured" in text
    assert _plan([*words, "precision=fp8_block"], as_json=True) == 0
    assert "never measured" in json.loads(capsys.readouterr().out)["stand_ins"]
    for own in ("precision=bf16", "precision=fp8_block_emulated"):
        assert _plan([*words, own], as_json=True) == 0
        assert json.loads(capsys.readouterr().out)["stand_ins"] is None


def test_what_transformer_engine_cannot_run_is_not_traced() -> None:
    with pytest.raises(CapacityError, match=r"kv_lora_rank\+qk_rope_head_dim=40.*multiples of 16"):
        _plan(["model=moe_nano", "precision=fp8_block"])


def test_a_trace_is_of_one_run() -> None:
    with pytest.raises(ConfigError, match="one configuration"):
        _plan(["model=moe_nano", "seed=1,2"], multirun=True)


def test_plan_traces_for_people_and_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, "parallelism=ep2", "launcher.device=cpu"]
    assert _plan(words, as_json=True) == 0
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    even, heavy = record["loads"]
    assert (even["max_violation"], heavy["max_violation"]) == (0.0, 0.5)
    assert heavy["rows_of_a_rank"] == 1.5 * even["rows_of_a_rank"]
    [stage] = heavy["stages"]
    assert sum(stage["at_peak"].values()) == stage["peak_bytes"] == heavy["peak_bytes"]
    assert all(each["bytes"] > 0 and each["shape"] for each in stage["largest"])
    assert _plan(words) == 0
    text = capsys.readouterr().out
    assert "MaxVio 0.5" in text
    assert "dsv3.grouped_mlp" in text


def _plan(words: list[str], *, multirun: bool = False, as_json: bool = False) -> int:
    options: dict[str, Any] = {"config_dir": None, "strict": False, "trace": True}
    return plan(words, multirun=multirun, as_json=as_json, imbalance=0.5, **options)


def _trace(config: RunConfig, rank: int, micro_batches: int) -> StageTrace:
    place = place_of(config.parallelism, rank)
    passes = trace_passes(
        config, place, device="cpu", max_violation=0.0, micro_batches=micro_batches
    )
    return step_of(config, place, passes)


def _peak_of_all(config: RunConfig, rank: int) -> int:
    """The peak of a step whose every micro batch is traced, added up in order and nothing else."""
    layout, n = config.parallelism, config.gradient_accumulation_steps
    place = place_of(layout, rank)
    passes = trace_passes(config, place, device="cpu", max_violation=0.0, micro_batches=n)
    live = peak = sum(passes.state.values())
    order: Any = [(kind, 0, index) for index in range(n) for kind in ("forward", "backward")]
    if layout.parts > 1:
        stages = layout.pipeline_parallel_size
        order = actions(layout.pipeline_schedule, stages, n, place.stage)
    for kind, part, index in order:
        memory = passes.of[kind, part][index].memory
        peak, live = max(peak, live + memory.peak), live + memory.end
    return max(peak, live + passes.reduce.peak, live + passes.reduce.end + passes.update.peak)
