"""Every shipped model, schedule and layout: published values, and what must hold between them."""

from pathlib import Path

import pytest

from dsv3.config.compose import compose
from dsv3.config.hardware import load_hardware
from dsv3.config.locations import shipped
from dsv3.config.root import RunConfig
from dsv3.plan.peak import peak_memory
from dsv3.plan.setting import DEFAULT_HARDWARE, Setting

MODELS = ("moe_nano", "moe_tiny", "moe_1b", "moe_3b", "moe_16b", "moe_228b", "moe_671b")
OWN_LAYOUT = {
    "moe_nano": (1, 1, 1),
    "moe_tiny": (1, 1, 1),
    "moe_1b": (1, 8, 1),
    "moe_3b": (1, 8, 1),
    "moe_16b": (1, 8, 1),
    "moe_228b": (16, 8, 1),
    "moe_671b": (16, 64, 2),
}

# config.json of deepseek-ai/DeepSeek-V3, the keys that shape the model.
RELEASED_671B = {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
}
# Pre-training differs from the released file in these: the report's section 4.2, and no YaRN yet.
PRE_TRAINING = {"initializer_range": 0.006, "max_position_embeddings": 4096, "rope_scaling": None}


def run(*overrides: str) -> RunConfig:
    return compose(list(overrides)).config


def layout_of(config: RunConfig) -> tuple[int, int, int]:
    layout = config.parallelism
    return (
        layout.pipeline_parallel_size,
        layout.expert_parallel_size,
        layout.expert_data_parallel_size,
    )


def options(group: str) -> list[str]:
    return sorted(path.stem for path in Path(shipped("conf"), group).glob("*.yaml"))


def test_the_models_are_those_tested_here() -> None:
    assert options("model") == sorted(MODELS)
    assert options("schedule") == sorted(MODELS)


def test_671b_is_the_released_model() -> None:
    values = run("model=moe_671b").model.model_dump(exclude={"name", "balance_strengths"})
    assert values == {**RELEASED_671B, **PRE_TRAINING}


@pytest.mark.parametrize(
    ("name", "coeffs"),
    [
        ("moe_1b", (1e-3, 0, 0)),  # arXiv 2408.15664, section 4.1
        ("moe_3b", (1e-3, 0, 0)),
        ("moe_16b", (1e-3, 0, 0)),  # V2-Lite's: arXiv 2405.04434, appendix B
        ("moe_228b", (3e-3, 5e-2, 2e-2)),  # V2's: arXiv 2405.04434, section 3.1.2
        ("moe_671b", (1e-4, 0, 0)),  # report, section 4.2
    ],
)
def test_published_strengths_reach_the_arms(name: str, coeffs: tuple[float, float, float]) -> None:
    keys = ("sequence_aux_loss_coeff", "device_aux_loss_coeff", "communication_aux_loss_coeff")
    assert run(f"model={name}", "balance=aux_loss").balance.coeffs == {keys[0]: coeffs[0]}
    assert run(f"model={name}", "balance=aux_batch").balance.coeffs == {
        "batch_aux_loss_coeff": coeffs[0]
    }
    assert run(f"model={name}", "balance=aux_loss_v2").balance.coeffs == dict(
        zip(keys, coeffs, strict=True)
    )


def test_228b_is_v2_with_what_the_report_changed() -> None:
    large, released = run("model=moe_228b").model, run("model=moe_671b").model
    assert (large.hidden_size, large.num_hidden_layers, large.intermediate_size) == (
        5120,
        60,
        12288,
    )
    assert (large.n_routed_experts, large.n_shared_experts, large.num_experts_per_tok) == (
        160,
        2,
        6,
    )
    assert (large.moe_intermediate_size, large.n_group, large.topk_group) == (1536, 8, 3)
    same = ("vocab_size", "first_k_dense_replace", "scoring_func", "norm_topk_prob", "kv_lora_rank")
    for key in (*same, "num_attention_heads", "q_lora_rank", "qk_rope_head_dim", "v_head_dim"):
        assert getattr(large, key) == getattr(released, key), key


def test_16b_is_v2_lite_with_what_the_report_changed() -> None:
    small = run("model=moe_16b").model
    assert (small.vocab_size, small.hidden_size, small.num_hidden_layers) == (102400, 2048, 27)
    assert (small.first_k_dense_replace, small.intermediate_size) == (1, 10944)
    assert (small.moe_intermediate_size, small.n_routed_experts) == (1408, 64)
    assert (small.n_shared_experts, small.num_experts_per_tok, small.n_group) == (2, 6, 1)
    assert (small.q_lora_rank, small.kv_lora_rank, small.num_attention_heads) == (None, 512, 16)
    assert (small.scoring_func, small.norm_topk_prob) == ("sigmoid", True)


@pytest.mark.parametrize(("name", "granularity"), [("moe_1b", 16 / 3), ("moe_3b", 4.0)])
def test_1b_and_3b_keep_the_granularity_of_their_paper(name: str, granularity: float) -> None:
    model = run(f"model={name}").model
    # The dense width is rounded to whole blocks of 128: 2688 for 8/3 x 1024 = 2730.7.
    assert model.intermediate_size / model.moe_intermediate_size == pytest.approx(
        granularity, rel=0.02
    )
    assert (model.n_shared_experts, model.n_routed_experts, model.num_experts_per_tok) == (2, 64, 6)
    assert (model.vocab_size, model.scoring_func, model.norm_topk_prob) == (32064, "sigmoid", False)


def test_small_models_start_with_the_signal_of_the_released_one() -> None:
    large = run("model=moe_671b").model
    for name in ("moe_nano", "moe_tiny"):
        small = run(f"model={name}").model
        ratio = small.initializer_range / large.initializer_range
        # std x sqrt(width) is kept, to the two digits that are written.
        assert ratio == pytest.approx((large.hidden_size / small.hidden_size) ** 0.5, rel=0.01)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_brings_its_schedule_layout_and_precision(name: str) -> None:
    config = run(f"model={name}")
    assert config.model.name == name
    assert layout_of(config) == OWN_LAYOUT[name]
    assert config.precision.recipe == ("fp32" if name in MODELS[:2] else "bf16")
    assert config.schedule == run(f"schedule={name}").schedule


@pytest.mark.parametrize("swap", [False, True])
def test_the_command_line_wins_over_the_model_in_any_order(swap: bool) -> None:
    def composed(*overrides: str) -> RunConfig:
        return run(*(reversed(overrides) if swap else overrides))

    config = composed("model=moe_16b", "schedule=moe_tiny", "parallelism=single")
    assert config.schedule == run("model=moe_tiny").schedule
    assert (config.model.name, layout_of(config)) == ("moe_16b", (1, 1, 1))
    assert composed("model=moe_16b", "schedule.lr=1e-5").schedule.lr == 1e-5
    assert layout_of(composed("model=moe_671b", "parallelism=single")) == (1, 1, 1)
    assert composed("model=moe_1b", "precision=fp32").precision.recipe == "fp32"
    assert composed("model=moe_1b", "parallelism.zero_stage=2").parallelism.zero_stage == 2


@pytest.mark.parametrize("name", MODELS)
def test_own_layout_divides_batch_and_experts(name: str) -> None:
    config = run(f"model={name}")
    ranks = config.parallelism.data_parallel_size
    assert config.schedule.global_batch_size % (config.schedule.micro_batch_size * ranks) == 0
    assert config.gradient_accumulation_steps >= 1
    assert config.model.n_routed_experts % config.parallelism.expert_parallel_size == 0
    assert config.parallelism.pipeline_parallel_size <= config.model.num_hidden_layers


@pytest.mark.parametrize("name", options("parallelism"))
def test_layouts_are_what_they_are_called(name: str) -> None:
    parts = {"pp": 1, "ep": 1, "dp": 1}
    for part in name.split("_") if name != "single" else ():
        parts[part[:2]] = int(part[2:])
    batch = ("schedule.global_batch_size=4096", "schedule.micro_batch_size=1")
    config = run("model=moe_671b", *batch, f"parallelism={name}")  # layers and experts for all
    assert layout_of(config) == (parts["pp"], parts["ep"], parts["dp"])
    assert config.parallelism.world_size == parts["pp"] * parts["ep"] * parts["dp"]


def test_there_is_a_layout_for_every_model_and_the_names_the_design_promises() -> None:
    promised = {"single", "dp2", "ep2", "ep2_dp2", "ep4", "ep8", "pp16_ep8", "pp16_ep64_dp2"}
    assert promised <= set(options("parallelism"))


@pytest.mark.parametrize("name", MODELS)
def test_learning_rates_cover_the_whole_axis_and_peak_at_one(name: str) -> None:
    schedule = run(f"model={name}").schedule
    curve = schedule.lr_curve
    assert curve.phases[-1].until == schedule.reference_tokens
    assert curve.start == 0.0
    assert max(phase.value for phase in curve.phases) == 1.0
    assert schedule.lr_at(schedule.total_tokens) < schedule.lr
    for phase in schedule.bias_update_speed_curve.phases:
        assert phase.until <= schedule.reference_tokens


@pytest.mark.parametrize(
    ("name", "tokens", "lr"),
    [
        ("moe_671b", 5 * 10**12, 2.2e-4),
        ("moe_671b", 12_150 * 10**9, (2.2e-4 + 2.2e-5) / 2),
        ("moe_671b", 14_300 * 10**9, 2.2e-5),
        ("moe_671b", 14_633 * 10**9, 2.2e-5),
        ("moe_671b", 14_634 * 10**9, 7.3e-6),
        ("moe_228b", 346 * 10**9, 2.4e-4),
        ("moe_228b", 348 * 10**9, 2.4e-4 * 0.316),
        ("moe_228b", 578 * 10**9, 2.4e-4 * 0.316**2),
        ("moe_16b", 1_064 * 10**9, 4.2e-4),
        ("moe_16b", 1_196 * 10**9, 4.2e-4 * 0.316),
        ("moe_16b", 1_330 * 10**9, 4.2e-4 * 0.316**2),
        ("moe_1b", 1000 * 1152 * 2048, 1e-3),
        ("moe_1b", 40_000 * 1152 * 2048, 1e-4),
        ("moe_3b", 1000 * 1728 * 2048, 3.9e-4),
        ("moe_3b", 45_211 * 1728 * 2048, 7.8e-4),
        ("moe_3b", 45_212 * 1728 * 2048, 2.47e-4),
        ("moe_3b", 50_862 * 1728 * 2048, 2.47e-4),
        ("moe_3b", 50_863 * 1728 * 2048, 7.8e-5),
    ],
)
def test_published_learning_rates(name: str, tokens: int, lr: float) -> None:
    assert run(f"model={name}").schedule.lr_at(tokens) == pytest.approx(lr, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "steps"),
    [("moe_1b", 40_000), ("moe_3b", 56_514), ("moe_16b", 70_466), ("moe_671b", 242_789)],
)
def test_published_steps(name: str, steps: int) -> None:
    assert run(f"model={name}").schedule.num_steps == steps


@pytest.mark.parametrize(
    ("name", "first", "half_way", "peak", "ramp"),
    [
        ("moe_671b", 3072, 9216, 15360, 469 * 10**9),
        ("moe_228b", 2304, 5888, 9216, 225 * 10**9),  # 5760 is no multiple of 256, and is a tie
    ],
)
def test_published_batches(name: str, first: int, half_way: int, peak: int, ramp: int) -> None:
    schedule = run(f"model={name}").schedule
    tokens = (0, ramp // 2, ramp, schedule.total_tokens - 1)
    sizes = [schedule.batch_size_at(each) for each in tokens]
    assert sizes == [first, half_way, peak, peak]
    assert schedule.batch_size_at(ramp - ramp // 20) < peak
    # 2000 steps of warm-up on the way up: the learning rate is there at their end and not before.
    rates = [schedule.lr_at(schedule.tokens_before(step + 1)) for step in (1999, 2000, 2001)]
    assert rates[0] < rates[1] == rates[2] == schedule.lr


@pytest.mark.parametrize("name", ["moe_1b", "moe_3b", "moe_16b"])
def test_a_constant_batch_follows_the_key_alone(name: str) -> None:
    schedule = run(f"model={name}", "schedule.global_batch_size=64").schedule
    assert {stretch.batch_size for stretch in schedule.stretches} == {64}


def test_gamma_ends_500_billion_tokens_before_the_end() -> None:
    config = run("model=moe_671b")
    assert config.balance.bias_update_speed == 0.001
    schedule, curve = config.schedule, config.schedule.bias_update_speed_curve
    billions = (1, 14_300, 14_301, 14_800)
    speeds = [schedule.fraction_at(curve, n * 10**9) for n in billions]
    assert speeds == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("precision", ["bf16", "fp8_block"])
@pytest.mark.parametrize("mtp", ["off", "depth1"])
@pytest.mark.parametrize("name", [name for name, (_, ranks, _) in OWN_LAYOUT.items() if ranks > 1])
def test_a_large_model_fits_the_reports_gpu_as_it_is_shipped(
    name: str, mtp: str, precision: str
) -> None:
    """The layout, micro batch and recomputation that come with it; busiest rank, MaxVio 1."""
    setting = Setting(DEFAULT_HARDWARE, load_hardware(DEFAULT_HARDWARE))
    config = run(f"model={name}", f"mtp={mtp}", f"precision={precision}")
    peak = peak_memory(config, max_violation=setting.max_violation).bytes_per_rank
    assert peak <= setting.usable_bytes


def test_recomputation_of_a_model_gives_way_to_the_command_line() -> None:
    policies = {name: run(f"model={name}").recompute for name in MODELS}
    assert policies == {
        name: "full" if name in ("moe_228b", "moe_671b") else "none" for name in MODELS
    }
    assert run("model=moe_228b", "recompute=moe").recompute == "moe"
    assert run("model=moe_671b", "model=moe_nano").recompute == "none"
