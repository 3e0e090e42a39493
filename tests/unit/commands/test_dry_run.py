"""`train --dry-run` of a recipe: the whole sweep, as a table and as JSON, without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dsv3 import cli

PROBE = """\
import sys
from dsv3 import cli
code = cli.run({words})
loaded = {{name.split('.')[0] for name in sys.modules}}
print(code, sorted(loaded & {{'torch', 'deepspeed', 'scipy'}}))
"""


def printed(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert cli.run(["train", *words, "--dry-run"]) == code
    return capsys.readouterr().out


@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_json_has_every_run_and_what_the_sweep_is(
    capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    data = json.loads(printed(capsys, "recipe=table5_balance", "model=moe_228b", "--json", *flags))
    assert (data["recipe"], data["baseline"]) == ("table5_balance", "aux_loss")
    assert data["arms"] == {"aux_loss": ["balance=aux_loss_v2"], "aux_free": ["balance=aux_free"]}
    assert data["total_tokens"] == 2 * 578_000_000_000
    assert data["derived"] == {"aux_loss": {}, "aux_free": {}}
    for run, arm in zip(data["runs"], ["aux_loss", "aux_free"], strict=True):
        assert (run["arm"], run["seed"], run["tokens"]) == (arm, 1, 578_000_000_000)
        assert run["parameters"] == {"total": 228_748_416_000, "active": 20_987_499_520}
        assert run["id"].startswith("moe_228b-aux_")
        assert "model=moe_228b" in run["overrides"]


def test_json_of_a_sweep_without_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=moe_nano", "balance=none,aux_free", "-m", "--json"]
    data = json.loads(printed(capsys, *words))
    assert (data["recipe"], data["baseline"]) == (None, "balance=none")
    assert [run["arm"] for run in data["runs"]] == ["balance=none", "balance=aux_free"]


def test_the_table_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "recipe=table4_mtp", "model=moe_16b")
    lines = [line.rstrip() for line in out.splitlines()]
    assert lines[0] == "recipe     table4_mtp"
    assert lines[1].startswith("question   Does training with multi-token prediction")
    assert lines[2] == "decided by bpb, lower is better; baseline baseline"
    (row,) = [line for line in lines if line.startswith(" mtp ")]
    assert [row.split()[i] for i in (0, 1, 3, 4, 5, 6)] == [
        "mtp",
        "mtp=depth1",
        "1",
        "1.33T",
        "15.71B",
        "2.451B",
    ]
    assert " all runs" in out and "2.66T" in out
    assert "follows in mtp, MTP counted: parameters.total 15.71B -> 16.3B" in out
    assert lines[-1] == "2 runs; nothing was started"


def test_a_table_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "recipe=section453_scope", "model=moe_nano")
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 125
    assert out.count("moe_nano-aux_") == 15


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["train", "recipe=table5_balance", "model=moe_nano", "--dry-run"]) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", ["moe_16b", "moe_228b"])
def test_the_largest_sweeps_are_told_without_torch(tmp_path: Path, model: str) -> None:
    words = ["train", "recipe=table5_balance", f"model={model}", "--dry-run", "--json"]
    command = [sys.executable, "-c", PROBE.format(words=words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_fp8_of_the_hardware_is_refused_before_anything_is_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dsv3.machine._nvml_gpus", lambda _visible: (None, ()))
    assert cli.run(["train", "model=moe_nano", "precision=fp8_block"]) == 3
    error = capsys.readouterr().err
    assert "precision.recipe=fp8_block: needs a Hopper GPU (H100, H200, H800) or a newer one" in (
        error
    )
    assert "precision=fp8_block_emulated computes the same values on any machine" in error
    assert list(tmp_path.iterdir()) == []
