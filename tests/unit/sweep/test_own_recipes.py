"""A recipe's file: every problem at once, each with the file, the rule and the remedy."""

from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from dsv3.config.recipe_rules import load_recipe
from dsv3.errors import ConfigError
from dsv3.sweep.expand import sweep_of

GOOD = {
    "question": "Which?",
    "axis": "[balance]",
    "baseline": "a",
    "arms": "{a: [balance=none], b: [balance=aux_free]}",
    "seeds": "[1]",
    "metric": "loss",
    "rule": "{better: lower}",
}
METRICS = (
    "loss, bpb, max_violation_global, max_violation_sequence, mtp_acceptance, specialization,"
    " relative_loss_error"
)


def written(root: Path, **keys: str) -> Path:
    file = root / "recipe" / "mine.yaml"
    file.parent.mkdir(exist_ok=True)
    lines = {key: value for key, value in {**GOOD, **keys}.items() if value}
    file.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    return file


def refused(root: Path, **keys: str) -> list[str]:
    file = written(root, **keys)
    with pytest.raises(ConfigError) as caught:
        load_recipe("mine", config_dir=root)
    messages = [str(problem) for problem in caught.value.problems]
    assert all(message.startswith(f"{file}: ") for message in messages)
    return [message.removeprefix(f"{file}: ") for message in messages]


def test_the_good_one_is_good(tmp_path: Path) -> None:
    written(tmp_path)
    recipe = load_recipe("mine", config_dir=tmp_path)
    assert recipe.arms == {"a": ("balance=none",), "b": ("balance=aux_free",)}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"question": ""}, "question: is missing; What is asked, in a sentence."),
        ({"question": "''"}, "question: has too little in it; What is asked, in a sentence."),
        ({"metric": "los"}, f"metric=los: must be one of {METRICS}; did you mean loss?"),
        ({"metrik": "loss"}, "metrik=loss: there is no such key; did you mean metric?"),
        ({"seeds": "1"}, "seeds=1: must be a list"),
        ({"seeds": "[1, 1]"}, "seeds=1, 1: names a seed twice; keep one of each"),
        (
            {"rule": "{better: lower, margin: -1}"},
            "rule.margin=-1: must be greater than or equal to 0",
        ),
        ({"rule": "lower"}, "rule=lower: must be a section with keys of its own"),
        (
            {"derived": "[token]"},
            "derived.0=token: must be one of parameters.total,"
            " parameters.active, flops_per_token, tokens, steps; did you mean tokens?",
        ),
        ({"baseline": "c"}, "baseline=c: is no arm of this recipe; arms: a, b"),
        (
            {"axis": "[balance, modle]"},
            "axis: modle: is neither a group nor a key; did you mean model?",
        ),
        (
            {"axis": "[balance, seed]"},
            "axis: seed: seeds are repeats of every arm; list them in `seeds`",
        ),
        (
            {"models": "{moe_nono: {seeds: [1]}}"},
            "models.moe_nono: there is no such model; did you"
            " mean moe_nano? (options: moe_16b, moe_1b, moe_228b, moe_3b, moe_671b,"
            " moe_nano, moe_tiny)",
        ),
        (
            {"models": "{moe_nano: {arms: {c: [balance=none]}}}"},
            "models.moe_nano.arms.c: is no arm of this recipe; arms: a, b",
        ),
        (
            {"models": "{moe_nano: {setup: [model=moe_tiny]}}"},
            "models.moe_nano.setup: model=moe_tiny: is there for that model alone; leave the"
            " word out",
        ),
        (
            {"arms": "{a: [balance=none], b: []}"},
            "arms.b: has no words: it equals the baseline 'a';"
            " write what marks the arm, as in [balance=aux_loss]",
        ),
        (
            {"arms": "{a: [balance=none], b: [balance=none]}"},
            "arms.b: has the words of arms.a; take one of the arms out",
        ),
        (
            {"arms": "{a: [balance=none], b: balance=aux_free}"},
            "arms.b=balance=aux_free: must be a list",
        ),
        (
            {"arms": "{a: [balance=none], b: [balance=aux_fre]}"},
            "arms.b: balance=aux_fre: balance has no option 'aux_fre'; did you mean"
            " aux_free? (options:"
            " aux_batch, aux_free, aux_free_seq, aux_loss, aux_loss_v2, none)",
        ),
        (
            {"arms": "{a: [balance=none], b: ['balance=aux_loss,aux_free']}"},
            "arms.b: balance=aux_loss,aux_free: stands for 2 values; an arm is one"
            " configuration: make"
            " an arm of each",
        ),
        (
            {"arms": "{a: [balance=none], b: [balance=aux_free, schedule.lr=1]}"},
            "arms.b: schedule.lr=1: is a second difference beside balance=aux_free: arms"
            " differ in the"
            " axis alone (balance); give it to every arm in `setup`, or leave it out",
        ),
        (
            {"arms": "{a: [balance=none], b: [balance=aux_free, seed=2]}"},
            "arms.b: seed=2: seeds are repeats of every arm; list them in `seeds`",
        ),
        (
            {"arms": "{a: [balance=none], 'b c': [balance=aux_free]}"},
            "arms.'b c': is no name: letters, digits and _ . + - after a letter or a digit;"
            " name it as a"
            " table should, as in aux_free",
        ),
        (
            {"setup": "[balance=none]"},
            "setup: balance=none: is in the axis (balance), which only arms set; move it"
            " into the arms",
        ),
        (
            {"setup": "[foo=1]"},
            "setup: foo=1: there is no key 'foo'; `dsv3 config show` prints all",
        ),
        (
            {"setup": "[recipe=table4_mtp]"},
            "setup: recipe=table4_mtp: a recipe is a sweep, and here is one run wanted;"
            " `train`, `plan`,"
            " `config show|diff|lint` take recipe=NAME, one a command",
        ),
        ({"question": "${seed}"}, "Interpolation key 'seed' not found"),
        (
            {"defaults": "[mine]"},
            "inherits from itself; give a recipe that begins with another its own name",
        ),
        ({"defaults": "[nothing]"}, "In 'mine': Could not load 'nothing'"),
    ],
)
def test_one_problem(tmp_path: Path, keys: dict[str, str], message: str) -> None:
    assert refused(tmp_path, **keys) == [message]


def test_all_problems_at_once(tmp_path: Path) -> None:
    found = refused(
        tmp_path,
        baseline="c",
        seeds="[2, 2]",
        arms="{a: [balance=none], b: [balance=aux_free, foo=1, mtp=depth1]}",
    )
    assert [message.split(":")[0] for message in found] == [
        "arms.b",
        "baseline=c",
        "seeds=2, 2",
        "arms.b",
    ]


def test_a_hostile_file_is_not_loaded(tmp_path: Path) -> None:
    file = written(tmp_path)
    file.write_text("question: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match=r"mine.yaml:1: the tag .* is not allowed"):
        load_recipe("mine", config_dir=tmp_path)


def test_the_recipes_of_the_guide_compose(tmp_path: Path, checkout: Path) -> None:
    text = (checkout / "docs" / "recipes.md").read_text()
    tokens = MarkdownIt().parse(text)
    blocks = [token.content for token in tokens if token.type == "fence" and token.info == "yaml"]
    assert len(blocks) == 2
    (tmp_path / "recipe").mkdir()
    for block in blocks:
        (tmp_path / "recipe" / "mine.yaml").write_text(block)
        words = ["recipe=mine", "data.path=text.jsonl", "data=jsonl", "seed=1"]
        sweep = sweep_of(words, multirun=False, config_dir=tmp_path)
        assert len(sweep.arms) == len(sweep.names) >= 2
