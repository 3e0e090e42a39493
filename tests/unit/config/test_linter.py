"""Each trap: the warning where it is stepped into, silence beside it; what shipped models get."""

import math
import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from dsv3.config import bias_speed, linter
from dsv3.config.compose import compose
from dsv3.config.linter import lint, lint_all
from dsv3.config.options import catalogue
from dsv3.config.root import RunConfig

YARN = {
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1,
    "mscale_all_dim": 1,
}
AXIS_671B = 14_800_000_000_000
LAMBDA_671B = {
    "start": 1.0,
    "phases": [
        {"until": 10_000_000_000_000, "shape": "constant", "value": 1.0},
        {"until": AXIS_671B, "shape": "constant", "value": 0.333},
    ],
}
CONSTANT = {"start": 1.0, "phases": []}
WARM_UP = {
    "start": 0.0,
    "phases": [
        {"until": 20_000, "shape": "linear", "value": 1.0},
        {"until": 1_000_000, "shape": "cosine", "value": 0.1},
    ],
}


def flat(value: float, *, start: float = 1.0, until: int = 1_000_000) -> dict[str, Any]:
    return {"start": start, "phases": [{"until": until, "shape": "constant", "value": value}]}


@cache
def composed(overrides: tuple[str, ...]) -> RunConfig:
    return compose(overrides).config


def changed(*overrides: str, **settings: Any) -> RunConfig:
    """A composed configuration with some keys set, `__` for `.`; no rule is asked."""
    data = composed(overrides).model_dump(mode="json")
    for path, value in settings.items():
        *sections, key = path.split("__")
        section = data
        for name in sections:
            section = section[name]
        section[key] = value
    return RunConfig.model_validate(data)


def ids(config: RunConfig) -> list[str]:
    return [finding.id for finding in lint(config)]


FREE = ("model=moe_tiny", "balance=aux_free")
MTP = ("model=moe_tiny", "balance=none", "mtp=depth1")
LARGE = ("model=moe_16b", "balance=none")
# id -> (a base that is not in the trap, what steps into it, the setting that is named)
CASES: list[tuple[str, tuple[str, ...], dict[str, Any], str]] = [
    (
        "bias-rate-zero",
        FREE,
        {"balance__bias_update_speed": 0},
        "balance.bias_update_speed=0",
    ),
    (
        "bias-rate-zero",
        FREE,
        {"schedule__bias_update_speed_curve": flat(0.0)},
        "schedule.bias_update_speed_curve",
    ),
    (
        "bias-rate-large",
        FREE,
        {"balance__bias_update_speed": 0.05},
        "balance.bias_update_speed=0.05",
    ),
    (
        "bias-rate-small",
        FREE,
        {"balance__bias_update_speed": 1e-4},
        "balance.bias_update_speed=0.0001",
    ),
    (
        "aux-coefficient-zero",
        ("balance=aux_loss",),
        {"balance__sequence_aux_loss_coeff": 0},
        "balance.sequence_aux_loss_coeff=0",
    ),
    (
        "aux-coefficient-zero",
        ("balance=aux_batch",),
        {"balance__batch_aux_loss_coeff": 0},
        "balance.batch_aux_loss_coeff=0",
    ),
    (
        "aux-coefficient-zero",
        ("balance=aux_loss_v2",),
        {"balance__device_aux_loss_coeff": 0},
        "balance.device_aux_loss_coeff=0",
    ),
    (
        "aux-loss-without-groups",
        ("balance=aux_loss_v2",),
        {"model__n_group": 1, "model__topk_group": 1},
        "model.n_group=1",
    ),
    (
        "strong-loss-beside-bias",
        ("balance=aux_free_seq",),
        {"balance__sequence_aux_loss_coeff": 0.02},
        "balance.sequence_aux_loss_coeff=0.02",
    ),
    ("bias-on-softmax", FREE, {"model__scoring_func": "softmax"}, "model.scoring_func=softmax"),
    (
        "previous-batch-counts",
        ("balance=aux_batch",),
        {"balance__batch_counts": "previous_step"},
        "balance.batch_counts=previous_step",
    ),
    (
        "other-aux-loss",
        ("balance=aux_loss",),
        {"balance__aux_loss_selection": "routed"},
        "balance.aux_loss_selection=routed",
    ),
    (
        "other-aux-loss",
        ("balance=aux_free",),
        {"balance__aux_loss_scores": "plain"},
        "balance.aux_loss_scores=plain",
    ),
    (
        "initial-std-large",
        LARGE,
        {"model__initializer_range": 0.02},
        "model.initializer_range=0.02",
    ),
    (
        "yarn-in-pre-training",
        LARGE,
        {"model__rope_scaling": YARN},
        "model.rope_scaling.factor=40",
    ),
    ("rope-theta-large", LARGE, {"model__rope_theta": 1e6}, "model.rope_theta=1e+06"),
    (
        "short-sequences",
        LARGE,
        {"schedule__sequence_length": 1024},
        "schedule.sequence_length=1024",
    ),
    ("group-limit-off", FREE, {"model__topk_group": 4}, "model.topk_group=4"),
    (
        "unnormalised-gates",
        LARGE,
        {"model__norm_topk_prob": False},
        "model.norm_topk_prob=false",
    ),
    (
        "routed-scale",
        LARGE,
        {"model__routed_scaling_factor": 1.0},
        "model.routed_scaling_factor=1",
    ),
    (
        "routed-scale",
        LARGE,
        {"model__routed_scaling_factor": 16.0},
        "model.routed_scaling_factor=16",
    ),
    ("mtp-weight-zero", MTP, {"mtp__loss_coeff": 0}, "mtp.loss_coeff=0"),
    (
        "mtp-weight-zero",
        MTP,
        {"schedule__mtp_loss_coeff_curve": flat(0.0)},
        "schedule.mtp_loss_coeff_curve",
    ),
    ("mtp-weight-large", MTP, {"mtp__loss_coeff": 1.5}, "mtp.loss_coeff=1.5"),
    ("learning-rate", LARGE, {"schedule__lr": 3.9e-6}, "schedule.lr=3.9e-06"),
    ("learning-rate", LARGE, {"schedule__lr": 3e-3}, "schedule.lr=0.003"),
    ("learning-rate", FREE, {"schedule__lr": 0.011}, "schedule.lr=0.011"),
    (
        "phase-shorter-than-step",
        ("model=moe_tiny", "balance=none"),
        {
            "schedule__total_tokens": 100_000,
            "schedule__reference_tokens": 1_000_000,
            "schedule__lr_curve": WARM_UP,
            "schedule__batch_size_curve": CONSTANT,
        },
        "schedule.lr_curve.phases.0",
    ),
    (
        "pipeline-bubble",
        ("model=moe_tiny", "balance=none"),
        {"parallelism__pipeline_parallel_size": 4, "parallelism__expert_data_parallel_size": 8},
        "parallelism.pipeline_parallel_size=4",
    ),
    ("fp32-large-model", LARGE, {"precision__recipe": "fp32"}, "precision.recipe=fp32"),
    (
        "gradient-clipping",
        FREE,
        {"optimizer__gradient_clipping": 1e6},
        "optimizer.gradient_clipping=1e+06",
    ),
    (
        "gradient-clipping",
        FREE,
        {"optimizer__gradient_clipping": 1e-4},
        "optimizer.gradient_clipping=0.0001",
    ),
    (
        "few-evaluation-sequences",
        FREE,
        {"evaluation__sequences": 31},
        "evaluation.sequences=31",
    ),
]


@pytest.mark.parametrize(
    ("trap", "base", "step_in", "setting"), CASES, ids=[f"{c[0]}-{c[3]}" for c in CASES]
)
def test_a_trap_is_warned_about_once_and_not_beside_it(
    trap: str, base: tuple[str, ...], step_in: dict[str, Any], setting: str
) -> None:
    assert trap not in ids(changed(*base))
    (found,) = (each for each in lint(changed(*base, **step_in)) if each.id == trap)
    assert found.setting == setting
    assert str(found) == f"warning[{trap}]: {setting}: {found.reason}; {found.remedy}"
    for source in ("report", "arXiv"):
        if source in found.reason:
            break
    else:
        pytest.fail(f"no source: {found.reason}")


def test_every_trap_has_a_case() -> None:
    assert len(linter.TRAPS) == len(set(linter.TRAPS)) == 23
    hit: set[Any] = set()
    for _, base, step_in, _ in CASES:
        config = changed(*base, **step_in)
        hit |= {trap for trap in linter.TRAPS if list(trap(config))}
    assert {trap.__name__ for trap in linter.TRAPS} - {trap.__name__ for trap in hit} == set()


def test_a_constant_lambda_is_warned_about_on_long_schedules_only() -> None:
    base = ("model=moe_671b", "balance=none", "mtp=depth1")
    constant = changed(*base, schedule__mtp_loss_coeff_curve=flat(1.0, until=AXIS_671B))
    assert ids(constant) == ["mtp-weight-constant"]
    assert ids(changed(*base, schedule__mtp_loss_coeff_curve=LAMBDA_671B)) == []
    assert "mtp-weight-constant" not in ids(changed("model=moe_16b", "mtp=depth1"))


def expected(model: str, arm: str) -> Iterator[str]:
    """What shipped options deserve: V2's group losses without groups or without strengths."""
    if arm == "aux_loss_v2" and model == "moe_nano":
        yield "aux-loss-without-groups"
    if arm == "aux_loss_v2" and model in ("moe_1b", "moe_3b", "moe_16b", "moe_671b"):
        yield from ("aux-coefficient-zero", "aux-coefficient-zero")


@pytest.mark.parametrize("model", catalogue()["model"])
def test_shipped_models_and_arms_get_the_warnings_they_deserve(model: str) -> None:
    for arm in catalogue()["balance"]:
        config = composed((f"model={model}", f"balance={arm}"))
        assert ids(config) == list(expected(model, arm)), arm
        for mtp in catalogue()["mtp"]:
            section = composed((f"mtp={mtp}",)).mtp.model_dump()
            settings = {"mtp": section}
            if model == "moe_671b":
                # Its lambda is constant or not; the test above is about that.
                settings["schedule__mtp_loss_coeff_curve"] = LAMBDA_671B
            both = changed(f"model={model}", f"balance={arm}", **settings)
            assert ids(both) == list(expected(model, arm)), (arm, mtp)


def test_a_warning_that_arms_share_is_told_once() -> None:
    arms = [changed(*LARGE, seed=seed, schedule__lr=1.0) for seed in (1, 2)]
    assert [finding.id for finding in lint_all([*arms, changed(*LARGE)])] == ["learning-rate"]


def test_one_group_makes_constants_or_worse() -> None:
    one = {"model__n_group": 1, "model__topk_group": 1}
    arm = ("model=moe_tiny", "balance=aux_loss_v2")
    assert "are constants without gradient" in str(lint(changed(*arm, **one))[0])
    plain = lint(changed(*arm, **one, balance__aux_loss_scores="plain"))
    assert "only push all scores down" in str(plain[0])
    off = {"balance__device_aux_loss_coeff": 0, "balance__communication_aux_loss_coeff": 0}
    assert "aux-loss-without-groups" not in ids(changed(*arm, **one, **off))


def test_a_knob_of_a_loss_the_arm_does_not_have_is_said_to_be_idle() -> None:
    (found,) = lint(changed("balance=none", balance__aux_loss_scores="plain"))
    assert "balance.strategy=none has no balance loss (report eq. 17) to obey it" in found.reason
    (found,) = lint(changed("balance=aux_loss", balance__aux_loss_scores="plain"))
    assert "not comparable" in found.reason


# What the estimates claim -----------------------------------------------------------------------


@pytest.mark.parametrize(("experts", "k"), [(16, 2), (64, 6), (256, 8)])
def test_normalised_gates_need_about_the_root_of_k(experts: int, k: int) -> None:
    """Half a percent: what the linter leaves out by taking the value of equal scores."""
    draw = random.Random(1)
    total = 0.0
    rounds = 300
    for _ in range(rounds):
        scores = [1 / (1 + math.exp(-draw.gauss(0, 1))) for _ in range(experts)]
        best = sorted(scores)[-k:]
        total += sum(best) / math.sqrt(sum(score**2 for score in best))
    assert total / rounds == pytest.approx(math.sqrt(k), rel=0.005)


@pytest.mark.parametrize(("gamma", "tokens"), [(1e-3, 512), (1e-2, 512), (1e-3, 100_000)])
def test_swing_is_that_of_a_simulated_bias(gamma: float, tokens: int) -> None:
    """One expert of 16, top 2, under the sign rule with normal noise of its count.

    Within a factor of 1.5: the estimate is linear in the bias, and a threshold needs no more.
    """
    speed = changed("model=moe_nano", balance__bias_update_speed=gamma, schedule__lr=1e-3)
    length, model = speed.schedule.sequence_length, speed.model
    config = changed(
        "model=moe_nano",
        balance__bias_update_speed=gamma,
        schedule__global_batch_size=max(1, tokens // length),
    )
    n = bias_speed.tokens_per_expert(config)
    share = model.num_experts_per_tok / model.n_routed_experts
    threshold = bias_speed.NORMAL.inv_cdf(1 - share)
    draw, bias, seen = random.Random(3), 0.0, []
    for step in range(6000):
        z = threshold - bias / bias_speed.SCORE_SPREAD
        load = (1 - bias_speed.NORMAL.cdf(z)) / share
        bias += gamma * (1 if load + draw.gauss(0, 1) / math.sqrt(n) < 1 else -1)
        if step > 500:
            seen.append((load - 1) ** 2)
    measured = math.sqrt(sum(seen) / len(seen))
    assert 1 / 1.5 < bias_speed.swing(config) / measured < 1.5


def test_the_largest_speed_suggested_is_the_one_that_reaches_the_limit() -> None:
    for overrides in (("model=moe_tiny",), ("model=moe_671b",)):
        limit = bias_speed.speed_of_swing(changed(*overrides), 0.3)
        at_limit = changed(*overrides, balance__bias_update_speed=limit)
        assert bias_speed.swing(at_limit) == pytest.approx(0.3, rel=1e-9)  # rounding alone
    small = changed("model=moe_tiny", schedule__global_batch_size=1, schedule__sequence_length=16)
    assert bias_speed.speed_of_swing(small, 0.3) < bias_speed.speed_of_swing(
        changed("model=moe_tiny"), 0.3
    )


def test_travel_is_the_sum_of_the_steps_of_the_run() -> None:
    curve = {
        "start": 0.0,
        "phases": [
            {"until": 300_000, "shape": "linear", "value": 1.0},
            {"until": 700_000, "shape": "constant", "value": 0.5},
            {"until": 1_000_000, "shape": "cosine", "value": 0.0},
        ],
    }
    config = changed(
        "model=moe_nano",
        schedule__reference_tokens=1_000_000,
        schedule__bias_update_speed_curve=curve,
        schedule__batch_size_curve=CONSTANT,
    )
    schedule = config.schedule
    tokens_per_step = schedule.global_batch_size * schedule.sequence_length
    steps = [
        config.balance.bias_update_speed
        * schedule.fraction_at(schedule.bias_update_speed_curve, (step + 1) * tokens_per_step)
        for step in range(schedule.num_steps)
    ]
    # A curve is read at the ends of steps, its mean is taken between them: 1 of 256 steps.
    assert bias_speed.travel(config) == pytest.approx(sum(steps), rel=1 / 100)


def test_the_report_and_its_schedule_are_neither_too_fast_nor_too_slow() -> None:
    config = compose(["model=moe_671b", "balance=aux_free_seq"]).config
    assert bias_speed.swing(config) < 0.03
    assert bias_speed.travel(config) > 100
    proportional = {"balance__bias_update_rule": "proportional"}
    for speed, trap in ((0.05, "bias-rate-large"), (1e-4, "bias-rate-small")):
        assert ids(changed(*FREE, balance__bias_update_speed=speed)) == [trap]
        assert ids(changed(*FREE, balance__bias_update_speed=speed, **proportional)) == []
    every_expert = changed(
        "model=moe_nano", model__num_experts_per_tok=16, model__n_shared_experts=1
    )
    assert bias_speed.swing(every_expert) == 0.0
