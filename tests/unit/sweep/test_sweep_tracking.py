"""A sweep names its runs on dashboards, and changes nothing else of them."""

from pathlib import Path

from dsv3.config.recipe import Recipe, Rule
from dsv3.config.root import RunConfig
from dsv3.runs.identity import run_id
from dsv3.sweep.record import SweepRecord
from dsv3.sweep.tracking import tracked

RECIPE = Recipe(
    question="?",
    axis=("balance",),
    baseline="a",
    arms={"a": ("balance=none",), "b": ("balance=aux_free",)},
    seeds=(1,),
    metric="loss",
    rule=Rule(better="lower"),
)


def record(recipe: Recipe | None) -> SweepRecord:
    return SweepRecord(
        id="table5-01",
        name="table5",
        model="moe_nano",
        run_root=Path("/runs"),
        created_at="",
        command=(),
        recipe=recipe,
        baseline="a",
        runs=(),
    )


def mirrored(config: RunConfig, **values: object) -> RunConfig:
    tracking = config.tracking.model_copy(update={"backend": "wandb", **values})
    return config.model_copy(update={"tracking": tracking})


def test_the_arm_and_its_seed_are_told(config: RunConfig) -> None:
    before = mirrored(config)
    after = tracked(before, record(RECIPE), "aux_free")
    assert after.tracking.group == "table5-01"
    assert after.tracking.name == "aux_free seed 1"
    assert after.tracking.tags == ("table5", "aux_free", "seed 1")
    assert run_id(after) == run_id(before)
    assert after.model_copy(update={"tracking": before.tracking}) == before
    assert RunConfig.model_validate(after.model_dump(mode="json")) == after


def test_without_a_recipe_there_is_no_tag_for_it(config: RunConfig) -> None:
    after = tracked(mirrored(config), record(None), "a")
    assert after.tracking.tags == ("a", "seed 1")


def test_what_the_user_set_stays(config: RunConfig) -> None:
    own = mirrored(config, group="mine", name="best", tags=("paper",))
    assert tracked(own, record(RECIPE), "a") == own


def test_without_a_mirror_two_sweeps_ask_for_a_run_in_the_same_words(config: RunConfig) -> None:
    assert tracked(config, record(RECIPE), "a") == config
