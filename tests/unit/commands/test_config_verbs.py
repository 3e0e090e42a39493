"""`dsv3 config show|ls|diff`."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsv3 import cli
from dsv3.config.compose import compose
from dsv3.config.options import catalogue
from dsv3.config.root import RunConfig


def printed(capsys: Any, *words: str) -> str:
    assert cli.run(["config", *words]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return str(captured.out)


def refused(capsys: Any, *words: str) -> str:
    assert cli.run(["config", *words]) == 2
    return str(capsys.readouterr().err)


def test_show_prints_a_configuration_that_can_be_read_back(capsys: Any) -> None:
    overrides = ["model=moe_nano", "run.tag=007", "schedule.lr=1e-7", "balance=none"]
    text = printed(capsys, "show", *overrides)
    assert RunConfig.model_validate(yaml.safe_load(text)) == compose(overrides).config
    as_json = json.loads(printed(capsys, "show", *overrides, "--json"))
    assert RunConfig.model_validate(as_json) == compose(overrides).config


def test_show_prints_a_part(capsys: Any) -> None:
    assert printed(capsys, "show", "run.tag=a", "-p", "run").startswith("tag: a\nheartbeat_")
    assert json.loads(printed(capsys, "show", "seed=4", "-p", "seed", "--json")) == 4
    assert refused(capsys, "show", "-p", "modl") == (
        "error[config]: --package modl: there is no 'modl' in the configuration;"
        " did you mean model?\n"
    )


def test_show_prints_every_arm(capsys: Any) -> None:
    text = printed(capsys, "show", "-m", "seed=1,2", "-p", "seed")
    assert "# arm 1 of 2: seed=1\n" in text
    assert "# arm 2 of 2: seed=2\n" in text
    arms = json.loads(printed(capsys, "show", "-m", "seed=1,2", "-p", "seed", "--json"))
    assert arms == [
        {"overrides": ["seed=1"], "config": 1},
        {"overrides": ["seed=2"], "config": 2},
    ]


def test_only_the_job_can_be_printed(capsys: Any) -> None:
    assert cli.run(["train", "--cfg", "hydra"]) == 2
    assert "--cfg hydra: only the configuration of the job" in capsys.readouterr().err


def test_ls_lists_every_option_and_marks_the_defaults(capsys: Any) -> None:
    data = json.loads(printed(capsys, "ls", "--json"))
    assert {group: [o["name"] for o in options] for group, options in data.items()} == {
        group: list(options) for group, options in catalogue().items()
    }
    defaults = {g: o["name"] for g, options in data.items() for o in options if o["default"]}
    assert defaults == dict(compose().choices)
    text = printed(capsys, "ls")
    assert "* moe_tiny" in text
    assert "  moe_nano" in text
    assert catalogue()["model"]["moe_nano"].comment in text


def test_ls_of_a_group_with_own_options(capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "balance").mkdir()
    own = tmp_path / "balance" / "mine.yaml"
    own.write_text("# My [bold]own[/bold] way.\nstrategy: none\nbias_update_speed: 0\n")
    text = printed(capsys, "ls", "balance", "--config-dir", str(tmp_path))
    assert "mine" in text
    assert f"My [bold]own[/bold] way. [{own}]" in text
    assert "moe_nano" not in text
    assert refused(capsys, "ls", "balanc") == (
        "error[config]: config ls balanc: there is no such group; did you mean balance?\n"
    )


def test_diff_of_a_sweep_is_the_difference_of_its_arms(capsys: Any) -> None:
    data = json.loads(printed(capsys, "diff", "balance=none,aux_free", "model=moe_nano", "--json"))
    assert data == {
        "arms": [["balance=none", "model=moe_nano"], ["balance=aux_free", "model=moe_nano"]],
        "differences": {
            "balance.strategy": ["none", "aux_free"],
            "balance.bias_update_speed": [
                0.0,
                compose(["model=moe_nano"]).config.balance.bias_update_speed,
            ],
        },
    }


def test_diff_of_sets(capsys: Any) -> None:
    words = ["diff", "seed=1", "run.tag=a", "vs", "seed=2", "vs", "run.tag=a", "--json"]
    data = json.loads(printed(capsys, *words))
    assert data["arms"] == [["seed=1", "run.tag=a"], ["seed=2"], ["run.tag=a"]]
    assert data["differences"] == {"seed": [1, 2, 1], "run.tag": ["a", None, "a"]}


def test_diff_of_one_is_against_the_default(capsys: Any) -> None:
    text = printed(capsys, "diff", "seed=77", "run.tag=b")
    assert "default" in text
    assert ["seed", "1", "77"] in [line.split() for line in text.splitlines()]
    assert ["run.tag", "null", "b"] in [line.split() for line in text.splitlines()]
    assert printed(capsys, "diff", "seed=1") == "no difference between default, seed=1\n"


@pytest.mark.parametrize("words", [["seed=x"], ["seed=1", "vs", "seed=x"]])
def test_diff_refuses_what_cannot_be_composed(words: list[str], capsys: Any) -> None:
    assert "error[config]: seed=x: must be a whole number" in refused(capsys, "diff", *words)


def test_recipes_are_listed_with_their_first_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    options = json.loads(printed(capsys, "ls", "recipe", "--json"))["recipe"]
    found = {option["name"]: option["comment"] for option in options}
    assert found["table4_mtp"].startswith("Table 4: a depth-1 MTP module or none; ")
    assert len(found) == 8


def test_a_recipe_is_shown_arm_by_arm(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["recipe=section453_scope", "model=moe_nano", "seed=1", "-p", "balance.strategy"]
    text = printed(capsys, "show", *words)
    assert [line for line in text.splitlines() if not line.startswith(("---", "#"))] == [
        "aux_loss",
        "aux_free",
        "aux_batch",
    ]


def test_diff_of_a_recipe_compares_its_arms_not_its_seeds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = json.loads(printed(capsys, "diff", "recipe=table4_mtp", "model=moe_nano", "--json"))
    assert found["differences"] == {
        "mtp.num_nextn_predict_layers": [0, 1],
        "mtp.loss_coeff": [0.0, 0.3],
    }


def test_every_run_of_a_recipe_is_linted(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["recipe=alf_update_rate", "model=moe_nano", "seed=1", "--json"]
    runs = json.loads(printed(capsys, "lint", *words))["runs"]
    assert [[one["id"] for one in run["warnings"]] for run in runs] == [[], ["bias-rate-small"], []]
