"""From a command line to a sweep: order of overrides, seeds, what is refused and how."""

from pathlib import Path

import pytest

from dsv3.errors import ConfigError
from dsv3.sweep.arms import BASE, Sweep
from dsv3.sweep.expand import configurations, sweep_of

MINE = """\
# Mine.
question: Which?
axis: [balance]
baseline: none
arms:
  none: [balance=none]
  free: [balance=aux_free]
seeds: [1, 2]
setup: [schedule.lr=0.001, model=moe_nano, run.tag=mine]
models:
  moe_nano:
    setup: [run.tag=nano]
    arms:
      free: [balance=aux_free, balance.bias_update_speed=0.5]
metric: loss
rule: {better: lower}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text(MINE)
    return tmp_path


def swept(*words: str, own: Path | None = None, multirun: bool = False) -> Sweep:
    return sweep_of(words, multirun=multirun, config_dir=own)


def refused(*words: str, own: Path | None = None, multirun: bool = False) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        swept(*words, own=own, multirun=multirun)
    return [str(problem) for problem in caught.value.problems]


def test_a_single_run_is_a_sweep_of_one() -> None:
    sweep = swept("model=moe_nano", "seed=3")
    (arm,) = sweep.arms
    assert (arm.name, arm.config.seed, arm.overrides) == (BASE, 3, ("model=moe_nano", "seed=3"))
    assert (sweep.recipe, sweep.baseline) == (None, BASE)


def test_a_sweep_of_the_command_line_has_its_first_arm_as_baseline() -> None:
    sweep = swept("balance=none,aux_free", "seed=1,2", "model=moe_nano", multirun=True)
    assert sweep.baseline == "balance=none"
    assert sweep.names == ("balance=none", "balance=aux_free")
    assert [arm.config.seed for arm in sweep.of_arm("balance=aux_free")] == [1, 2]
    assert sweep.marks == {
        "balance=none": ("balance=none",),
        "balance=aux_free": ("balance=aux_free",),
    }
    assert (sweep.name, sweep.recipe) == ("balance", None)


def test_seeds_alone_are_one_arm() -> None:
    sweep = swept("seed=1,2", "model=moe_nano", multirun=True)
    assert (sweep.names, sweep.baseline, sweep.name) == ((BASE,), BASE, "seeds")


def test_setup_then_the_models_then_the_arm_then_the_command_line(own: Path) -> None:
    sweep = swept("recipe=mine", "schedule.lr=0.002", own=own)
    assert [(arm.name, arm.config.seed) for arm in sweep.arms] == [
        ("none", 1),
        ("free", 1),
        ("none", 2),
        ("free", 2),
    ]
    for arm in sweep.arms:
        assert arm.config.schedule.lr == 0.002
        assert arm.config.run.tag == "nano"
    assert sweep.of_arm("free")[0].config.balance.bias_update_speed == 0.5
    assert sweep.marks["free"] == ("balance=aux_free", "balance.bias_update_speed=0.5")


def test_the_part_of_another_model_is_left_alone(own: Path) -> None:
    sweep = swept("recipe=mine", "model=moe_tiny", own=own)
    assert {arm.config.run.tag for arm in sweep.arms} == {"mine"}
    assert sweep.of_arm("free")[0].config.balance.bias_update_speed == 0.001


@pytest.mark.parametrize("multirun", [False, True])
@pytest.mark.parametrize(
    ("word", "seeds"), [("seed=7", [7]), ("seed=7,9", [7, 9]), ("seed=range(1,4)", [1, 2, 3])]
)
def test_seeds_of_the_command_line_replace_the_recipes(
    own: Path, word: str, seeds: list[int], multirun: bool
) -> None:
    sweep = swept("recipe=mine", word, own=own, multirun=multirun)
    assert [arm.config.seed for arm in sweep.of_arm("none")] == seeds


@pytest.mark.parametrize("defaults", ["[mine, _self_]", "[mine]"])
@pytest.mark.filterwarnings("error")
def test_a_recipe_may_begin_with_another(own: Path, defaults: str) -> None:
    text = f"defaults: {defaults}\nseeds: [5]\narms: {{seq: [balance=aux_free_seq]}}\n"
    (own / "recipe" / "more.yaml").write_text(text)
    sweep = swept("recipe=more", own=own)
    assert [(arm.name, arm.config.seed) for arm in sweep.arms] == [
        ("none", 5),
        ("free", 5),
        ("seq", 5),
    ]


def test_an_own_recipe_shadows_a_shipped_one(own: Path) -> None:
    (own / "recipe" / "table5_balance.yaml").write_text(MINE)
    assert swept("recipe=table5_balance", own=own).baseline == "none"
    assert swept("recipe=table5_balance", "model=moe_nano").baseline == "aux_loss"


ONE = (
    "a command takes one recipe; ask for one after the other: runs that they share are trained once"
)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe=mine,table4_mtp"], f"recipe=mine,table4_mtp: {ONE}"),
        (["recipe=mine", "recipe=table4_mtp"], f"recipe=mine recipe=table4_mtp: {ONE}"),
        (["recipe=[mine,table4_mtp]"], f"recipe=[mine,table4_mtp]: {ONE}"),
        (["recipe=glob(*)"], f"recipe=glob(*): {ONE}"),
        (
            ["recipe=mime"],
            "recipe=mime: recipe has no option 'mime'; did you mean mine? (options:"
            " alf_update_rate,"
            " appendixB1_floor, appendixB1_fp8, appendixB2_blockwise_dgrad, figure9_expert_load,"
            " section453_scope,"
            " table4_mtp, table5_balance, mine)",
        ),
        (
            ["recipe=mine", "schedule.lr=1e-3,2e-3"],
            "schedule.lr=1e-3,2e-3: is a sweep beside that of recipe=mine; only seed may"
            " have several"
            " values; give one value, and ask again for each other",
        ),
        (
            ["recipe=mine", "balance=aux_free"],
            "balance=aux_free: is what recipe=mine varies (axis: balance); leave it out; other arms"
            " are a recipe of your own that begins with mine",
        ),
        (
            ["recipe=mine", "balancing.bias_update_speed=1"],
            "balancing.bias_update_speed=1: is what recipe=mine varies (axis: balance);"
            " leave it out;"
            " other arms are a recipe of your own that begins with mine",
        ),
    ],
)
@pytest.mark.parametrize("multirun", [False, True])
def test_refused_words(own: Path, words: list[str], message: str, multirun: bool) -> None:
    assert refused(*words, own=own, multirun=multirun) == [message]


def test_problems_of_the_recipe_and_of_the_words_come_together(own: Path) -> None:
    (own / "recipe" / "mine.yaml").write_text(MINE.replace("baseline: none", "baseline: nome"))
    recipe, word = refused("recipe=mine", "foo=1", own=own)
    assert recipe.endswith("mine.yaml: baseline=nome: is no arm of this recipe; did you mean none?")
    assert word == "foo=1: there is no key 'foo'; `dsv3 config show` prints all"


def test_problems_of_all_arms_come_together_each_once(own: Path) -> None:
    own_arm = MINE.replace("bias_update_speed=0.5", "bias_update_speed=-1")
    (own / "recipe" / "mine.yaml").write_text(own_arm)
    assert refused("recipe=mine", "seed=-1", "model.n_group=3", own=own) == [
        "seed=-1: must be a whole number >= 0 and < 2^63",
        "model.n_group=3: must divide model.n_routed_experts=16; use one of 1, 2, 4, 8",
        "balance.bias_update_speed=-1: must be a number >= 0 [arm free]",
    ]


def test_arms_that_a_run_does_not_know_apart_are_refused_before_training() -> None:
    words = ["parallelism=single,ep2", "model=moe_nano"]
    (message,) = refused(*words, multirun=True)
    assert message.startswith(
        "arms parallelism=single and parallelism=ep2: differ in parallelism.expert_parallel_size"
        " alone, which is no part of what a run computes: both are the run moe_nano-aux_free-s1-"
    )
    assert message.endswith("; run.tag tells runs apart")
    # A plan may compare them.
    assert len(configurations(words, multirun=True, config_dir=None)) == 2
