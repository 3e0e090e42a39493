"""Every shipped recipe with every model: it composes, and the report's scales are the report's."""

from functools import cache
from pathlib import Path

import pytest

from dsv3.config.locations import shipped
from dsv3.config.options import catalogue
from dsv3.runs.identity import run_id
from dsv3.sweep.arms import Sweep
from dsv3.sweep.expand import sweep_of

RECIPES = {
    "alf_update_rate": ("middle", ["middle", "slow", "fast"]),
    "appendixB1_floor": ("bf16", ["bf16", "fp32"]),
    "appendixB1_fp8": ("bf16", ["bf16", "fp8"]),
    "appendixB2_blockwise_dgrad": ("tile", ["tile", "block"]),
    "figure9_expert_load": ("aux_loss", ["aux_loss", "aux_free"]),
    "section453_scope": ("sequence_wise", ["sequence_wise", "aux_free", "batch_wise"]),
    "table4_mtp": ("baseline", ["baseline", "mtp"]),
    "table5_balance": ("aux_loss", ["aux_loss", "aux_free"]),
}
MODELS = list(catalogue()["model"])
LONGEST = 40
NANO_SEEDS = [1, 2, 3, 4, 5]

# The report: tables 4 and 5, appendix B; 1B and 3B: arXiv 2408.15664, appendix B.
PUBLISHED_TOKENS = {
    ("table4_mtp", "moe_16b"): 1_330_000_000_000,
    ("table4_mtp", "moe_228b"): 540_000_000_000,
    ("table5_balance", "moe_16b"): 1_330_000_000_000,
    ("table5_balance", "moe_228b"): 578_000_000_000,
    ("figure9_expert_load", "moe_16b"): 1_330_000_000_000,
    ("appendixB1_fp8", "moe_16b"): 1_330_000_000_000,
    ("appendixB1_fp8", "moe_228b"): 900_000_000_000,
    ("appendixB2_blockwise_dgrad", "moe_16b"): 300_000_000_000,
    ("section453_scope", "moe_1b"): 1152 * 2048 * 40_000,
    ("section453_scope", "moe_3b"): 1728 * 2048 * 56_514,
    ("alf_update_rate", "moe_1b"): 1152 * 2048 * 40_000,
}


@cache
def asked(recipe: str, model: str, *words: str) -> Sweep:
    return sweep_of([f"recipe={recipe}", f"model={model}", *words], multirun=False, config_dir=None)


def ids(sweep: Sweep, arm: str) -> list[str]:
    return [one.id for one in sweep.of_arm(arm)]


def test_the_recipes_are_those_tested_here() -> None:
    assert list(catalogue()["recipe"]) == sorted(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_short_and_says_what_it_is(recipe: str) -> None:
    text = Path(shipped("recipes"), f"{recipe}.yaml").read_text()
    assert len(text.splitlines()) <= LONGEST
    assert catalogue()["recipe"][recipe].comment.endswith(".")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_composes_with_a_model(recipe: str, model: str) -> None:
    baseline, arms = RECIPES[recipe]
    sweep = asked(recipe, model, "seed=2")
    assert sweep.recipe is not None
    assert (sweep.name, sweep.baseline, list(sweep.names)) == (recipe, baseline, arms)
    assert [(arm.name, arm.config.seed) for arm in sweep.arms] == [(arm, 2) for arm in arms]
    assert {arm.config.model.name for arm in sweep.arms} == {model}
    assert len({arm.id for arm in sweep.arms}) == len(sweep.arms)
    assert [arm.id for arm in sweep.arms] == [run_id(arm.config) for arm in sweep.arms]


@pytest.mark.parametrize(("recipe", "model"), PUBLISHED_TOKENS)
def test_a_published_scale_has_its_tokens_and_one_seed(recipe: str, model: str) -> None:
    sweep = asked(recipe, model)
    tokens = {arm.config.schedule.total_tokens for arm in sweep.arms}
    assert tokens == {PUBLISHED_TOKENS[recipe, model]}
    assert [arm.config.seed for arm in sweep.arms] == [1] * len(sweep.names)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_smallest_model_is_trained_with_five_seeds(recipe: str) -> None:
    sweep = asked(recipe, "moe_nano")
    for arm in sweep.names:
        assert [run.config.seed for run in sweep.of_arm(arm)] == NANO_SEEDS


@pytest.mark.parametrize(
    ("model", "strategy", "coeffs"),
    [
        ("moe_16b", "aux_loss", (1e-3,)),  # V2-Lite: arXiv 2405.04434, appendix B
        ("moe_228b", "aux_loss_v2", (3e-3, 5e-2, 2e-2)),  # V2: ibid., section 3.1.2
    ],
)
def test_table_5_has_the_published_strengths(
    model: str, strategy: str, coeffs: tuple[float, ...]
) -> None:
    aux_loss, aux_free = asked("table5_balance", model).arms
    assert aux_loss.config.balance.strategy == strategy
    assert tuple(aux_loss.config.balance.coeffs.values()) == coeffs
    # "remove all auxiliary losses and introduce the auxiliary-loss-free balancing strategy"
    assert aux_free.config.balance.strategy == "aux_free"
    assert aux_free.config.balance.coeffs == {}
    assert aux_free.config.balance.bias_update_speed == 1e-3


def test_table_4_adds_one_module() -> None:
    without, mtp = (arm.config.mtp for arm in asked("table4_mtp", "moe_228b").arms)
    assert (without.num_nextn_predict_layers, mtp.num_nextn_predict_layers) == (0, 1)
    assert mtp.loss_coeff == 0.3


def test_fp8_is_the_hardwares_where_the_report_had_it() -> None:
    for model, fp8 in (("moe_16b", "fp8_block"), ("moe_nano", "fp8_block_emulated")):
        found = [
            arm.config.precision.recipe for arm in asked("appendixB1_fp8", model, "seed=1").arms
        ]
        assert found == ["bf16", fp8]


def test_runs_that_are_the_same_experiment_are_shared() -> None:
    sweeps = {recipe: asked(recipe, "moe_nano") for recipe in RECIPES}
    free = ids(sweeps["table5_balance"], "aux_free")
    assert len(free) == len(NANO_SEEDS)
    assert ids(sweeps["section453_scope"], "aux_free") == free
    assert ids(sweeps["table4_mtp"], "baseline") == free
    assert ids(sweeps["alf_update_rate"], "middle") == free
    aux_loss = ids(sweeps["table5_balance"], "aux_loss")
    assert ids(sweeps["section453_scope"], "sequence_wise") == aux_loss
    table5, figure9 = sweeps["table5_balance"], sweeps["figure9_expert_load"]
    assert [arm.id for arm in figure9.arms] == [arm.id for arm in table5.arms]
    fp8 = ids(sweeps["appendixB1_fp8"], "fp8")
    assert ids(sweeps["appendixB2_blockwise_dgrad"], "tile") == fp8
    # Tables 4, 5, figure 9 and section 4.5.3: 5 x (loss, bias, batch, MTP) runs for 45 asked for.
    lab = ("table4_mtp", "table5_balance", "figure9_expert_load", "section453_scope")
    assert sum(len(sweeps[recipe].arms) for recipe in lab) == 45
    assert len({arm.id for recipe in lab for arm in sweeps[recipe].arms}) == 20


def test_an_arm_equals_the_run_that_is_asked_for_by_hand() -> None:
    (by_hand,) = sweep_of(
        ["model=moe_nano", "balance=aux_free", "seed=4"], multirun=False, config_dir=None
    ).arms
    assert by_hand.id in {arm.id for arm in asked("table5_balance", "moe_nano").arms}
