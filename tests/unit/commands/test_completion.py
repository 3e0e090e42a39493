"""Completion of verbs, flags, groups, options and keys; the bash script is run by a real bash."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from dsv3 import cli
from dsv3.commands.completion import SCRIPTS, candidates
from dsv3.config.options import catalogue

ARMS = [
    f"balance={arm}"
    for arm in ("aux_batch", "aux_free", "aux_free_seq", "aux_loss", "aux_loss_v2", "none")
]
COMMAND = typer.main.get_command(cli.app)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tr", ["train"]),
        ("comple", ["completion"]),
        ("config ", ["show", "ls", "diff", "lint", "schedule"]),
        ("config d", ["diff"]),
        ("data p", ["prepare"]),
        ("completion ", ["bash", "zsh", "fish"]),
        ("train --mu", ["--multirun"]),
        ("train --cfg ", ["job"]),
        ("train -m --config-dir ", []),
        ("train bala", ["balance=", "balance."]),
        ("train reci", ["recipe="]),
        ("config diff recipe=ta", ["recipe=table4_mtp", "recipe=table5_balance"]),
        ("data prepare reci", []),
        ("config ls reci", ["recipe"]),
        ("train -m seed=1,2 se", ["seed="]),
        ("train model.n_g", ["model.n_group="]),
        ("train schedule.lr", ["schedule.lr=", "schedule.lr_curve."]),
        ("train schedule.lr_curve.", ["schedule.lr_curve.start=", "schedule.lr_curve.phases="]),
        ("train model=moe_n", ["model=moe_nano"]),
        ("plan balance=", ARMS),
        ("train balance=none,", [f"balance=none,{arm[8:]}" for arm in ARMS]),
        ("train balancing=n", ["balancing=none"]),
        ("train launcher.device=c", ["launcher.device=cpu", "launcher.device=cuda"]),
        (
            "config show model.norm_topk_prob=",
            ["model.norm_topk_prob=true", "model.norm_topk_prob=false"],
        ),
        ("config diff seed=1 vs preci", ["precision=", "precision."]),
        ("config ls sch", ["schedule", "schedule/lr_curve"]),
        ("train schedule/", ["schedule/lr_curve="]),
        ("train schedule/lr_curve=w", ["schedule/lr_curve=wsd"]),
        ("config schedule --s", ["--svg"]),
        ("config schedule model=moe_n", ["model=moe_nano"]),
        ("data prepare data=j", ["data=jsonl"]),
        ("train seed=", []),
        ("train nothing=", []),
        ("doctor x", []),
        ("ev", ["eval"]),
        ("eval ru", []),
        ("eval runs/x evaluation.s", ["evaluation.sequences="]),
        ("eval runs/x launcher.device=c", ["launcher.device=cpu", "launcher.device=cuda"]),
        ("eval runs/x --step 3 r", ["run_root="]),
        ("eval runs/x model.", []),
    ],
)
def test_candidates(line: str, expected: list[str]) -> None:
    assert candidates(line.split(" "), COMMAND) == expected


def test_every_group_and_key_can_be_reached() -> None:
    for group in catalogue():
        assert f"{group}=" in candidates(["train", group], COMMAND)


def test_own_options_are_offered(tmp_path: Path) -> None:
    (tmp_path / "balance").mkdir()
    (tmp_path / "balance" / "mine.yaml").touch()
    words = ["train", "--config-dir", str(tmp_path), "balance=m"]
    assert candidates(words, COMMAND) == ["balance=mine"]
    words[2] = "/nowhere"
    assert candidates(words, COMMAND) == []


def test_scripts(capsys: Any) -> None:
    for shell, script in SCRIPTS.items():
        assert cli.run(["completion", shell]) == 0
        assert capsys.readouterr().out == script
    assert cli.run(["completion", "bsh"]) == 2
    assert "did you mean bash?" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dsv3", "train", "balance="], ARMS),
        (["dsv3", "train", "-m", "schedule.tot"], ["schedule.total_tokens="]),
        (["dsv3", "train", "x=y", "--dry"], ["--dry-run"]),
    ],
)
def test_bash(words: list[str], expected: list[str]) -> None:
    """The function of the script, called as bash calls it."""
    script = f"""
        dsv3() {{ '{sys.executable}' -m dsv3 "$@"; }}
        {SCRIPTS["bash"]}
        [[ $COMP_WORDBREAKS != *=* ]] || echo "= still splits words"
        compopt() {{ :; }}
        COMP_WORDS=({" ".join(words)})
        COMP_CWORD={len(words) - 1}
        _dsv3_completion
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    process = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert process.stderr == ""
    assert process.stdout.splitlines() == expected
