"""Warnings at the command line: on stderr once, in JSON per run, and refused with --strict."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsv3 import cli
from dsv3.config.compose import compose
from dsv3.config.linter import lint

TRAPPED = ["model=moe_nano", "balance=none", "schedule.lr=1", "evaluation.sequences=1"]
CLEAN = ["model=moe_nano", "balance=none"]


@pytest.fixture
def told() -> str:
    """The lines of the two traps of TRAPPED."""
    findings = lint(compose(TRAPPED).config)
    assert [finding.id for finding in findings] == ["learning-rate", "few-evaluation-sequences"]
    return "".join(f"{finding}\n" for finding in findings)


@pytest.mark.parametrize("verb", [["plan"], ["train", "--dry-run"]])
@pytest.mark.parametrize("sweep", [[], ["-m", "seed=1,2"]])
def test_warnings_are_lines_on_stderr_and_told_once(
    verb: list[str], sweep: list[str], told: str, capsys: Any
) -> None:
    assert cli.run([*verb, *TRAPPED, *sweep]) == 0
    captured = capsys.readouterr()
    assert captured.err == told
    assert "warning[" not in captured.out
    assert cli.run([*verb, *TRAPPED, *sweep, "--json"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("verb", [["plan", "-m"], ["train", "--dry-run"], ["config", "lint"]])
def test_json_has_the_warnings_of_each_run(verb: list[str], capsys: Any) -> None:
    assert cli.run([*verb, *TRAPPED, "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert [list(warning) for warning in run["warnings"]] == [
        ["id", "setting", "reason", "remedy"]
    ] * 2
    assert run["warnings"][0]["setting"] == "schedule.lr=1"
    assert cli.run([*verb, *CLEAN, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["warnings"] == []


@pytest.mark.parametrize("verb", [["plan"], ["train"], ["train", "--dry-run"], ["config", "lint"]])
def test_strict_refuses_them_all_at_once(
    verb: list[str], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run([*verb, *TRAPPED, "-m", "seed=1,2", "--strict", "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("error[config]: ") == captured.err.count("\n") == 2
    assert "[learning-rate]; use 1e-05 to 0.01" in captured.err
    assert len(json.loads(captured.out)["error"]["problems"]) == 2
    assert list(tmp_path.iterdir()) == []
    if verb != ["train"]:
        assert cli.run([*verb, *CLEAN, "--strict"]) == 0


def test_config_lint_is_a_table_or_no_warnings(capsys: Any) -> None:
    assert cli.run(["config", "lint", *CLEAN]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("no warnings\n", "")
    assert cli.run(["config", "lint", *TRAPPED, "-m", "seed=1,2"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("few-evaluation-sequences") == 1
    assert "schedule.lr=1" in captured.out


@pytest.mark.parametrize("verb", ["train", "plan"])
def test_the_job_stays_pure_yaml(verb: str, capsys: Any) -> None:
    assert cli.run([verb, *TRAPPED, "--cfg", "job"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert yaml.safe_load(captured.out)["schedule"]["lr"] == 1.0


def test_records_have_the_arm_with_its_strengths(capsys: Any) -> None:
    words = ["model=moe_228b", "balance=aux_loss_v2", "mtp=depth1", "--json"]
    coeffs = {
        "sequence_aux_loss_coeff": 0.003,
        "device_aux_loss_coeff": 0.05,
        "communication_aux_loss_coeff": 0.02,
    }
    balance = {"strategy": "aux_loss_v2", "coeffs": coeffs, "bias_update_speed": 0.0}
    assert cli.run(["plan", *words]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["balance"] == balance
    assert record["mtp"]["loss_coeff"] == 0.3
    assert cli.run(["train", "--dry-run", *words]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["balance"] == balance
    assert run["mtp"] == {"num_nextn_predict_layers": 1, "loss_coeff": 0.3}
