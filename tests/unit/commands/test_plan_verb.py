"""`dsv3 plan` with its options, for people and for scripts."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from dsv3.cli import run
from dsv3.commands.plan_lanes import text
from dsv3.commands.plan_run import ranges
from dsv3.lanes import Box, Lane

SWEEP = ["plan", "recipe=table5_balance", "model=moe_228b"]


def record(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    code = run([*words, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    found: dict[str, Any] = json.loads(captured.out)
    return found


def test_a_sweep_has_its_totals(capsys: pytest.CaptureFixture[str]) -> None:
    found = record(capsys, *SWEEP, "--gpus", "256")
    runs, totals = found["runs"], found["totals"]
    assert len(runs) == totals["runs"] == 2
    for total, key in (("gpu_hours", "gpu_hours"), ("cost_usd", "cost_usd"), ("tokens", "tokens")):
        assert totals[total] == pytest.approx(sum(each[key] for each in runs))
    assert totals["disk_bytes"] == sum(each["disk"]["total"] for each in runs)
    # Two runs of 128 ranks side by side.
    assert totals["days"] == pytest.approx(max(each["time"]["seconds"] for each in runs) / 86400)
    narrow = record(capsys, *SWEEP, "--gpus", "128", "--usd-per-gpu-hour", "3")["totals"]
    assert narrow["days"] == pytest.approx(2 * totals["days"], rel=1e-2)
    assert narrow["cost_usd"] == pytest.approx(1.5 * totals["cost_usd"])


def test_the_contract_of_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = record(capsys, "plan", "model=moe_nano", "--hardware", "h100")
    assert found["parameters"]["total"] == 1_524_992
    assert found["memory"]["peak_bytes_per_rank"] > 0
    assert found["gpu_hours"] > 0
    assert found["cost_usd"] is None  # nobody gave a price of an H100
    assert found["fits"] is True and found["advice"] == []
    assert (found["world_size"], found["pipeline"]) == (1, [])


def test_people_read_tables_and_a_timeline(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    drawn = tmp_path / "sweep.svg"
    assert run([*SWEEP, "--svg", str(drawn)]) == 0
    out = capsys.readouterr().out
    assert "all runs" in out and "balance=aux_free" in out
    lanes = [line for line in out.splitlines() if "####" in line]
    assert len(lanes) == 2  # one after the other on the ranks of one
    assert lanes[0].endswith(".") and lanes[1].endswith("#")
    assert ElementTree.parse(drawn).getroot().tag.endswith("svg")


def test_a_pipeline_is_drawn_and_a_single_rank_is_not(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    drawn = tmp_path / "step.svg"
    assert run(["plan", "model=moe_228b", "--svg", str(drawn)]) == 0
    out = capsys.readouterr().out
    assert "stage 15" in out and "DualPipeV" in out
    assert "stage 3" in drawn.read_text()
    assert run(["plan", "model=moe_nano", "--svg", str(drawn)]) == 2
    assert "no pipeline to draw" in capsys.readouterr().err


def test_a_search_prints_a_line_for_each_layout(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "model=moe_16b", "precision=bf16", "--gpus", "16", "--hardware", "h200"]
    found = record(capsys, *words)["layouts"]
    assert run(words) == 0
    out = capsys.readouterr().out
    for number, layout in enumerate(found, start=1):
        assert f"{number}: {' '.join(layout['overrides'])}" in out
    assert found == sorted(found, key=lambda each: each["days"])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--hardware", "h300"], 2, "there are b200, gb200, h100, h200, h800"),
        (["--gpus", "0"], 2, "--gpus 0: must be 1 at least"),
        (["--imbalance", "-1"], 2, "--imbalance -1: must be 0"),
        (["--usd-per-gpu-hour", "-1"], 2, "must not be negative"),
        (["parallelism=pp16_ep8", "--gpus", "100"], 3, "has 128 ranks, one GPU each; use --gpus"),
        (["--gpus", "2"], 3, "the nearest needs"),
    ],
)
def test_errors_name_the_way_out(
    capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    assert run(["plan", "model=moe_228b", *words]) == code
    err = capsys.readouterr().err
    assert said in err
    assert len([line for line in err.splitlines() if line.startswith("error")]) == 1


def test_wrong_options_are_told_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--hardware", "h300", "--gpus", "0"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_published_runs_stand_beside_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    checks = record(capsys, "plan", "--published")["checks"]
    assert {"what", "published", "planned", "gap"} <= set(checks[0])
    assert run(["plan", "--published"]) == 0
    assert "19.926 s" in capsys.readouterr().out


def test_lanes_as_text() -> None:
    lanes = [Lane("a", [Box("F", 0, 2), Box("B", 3, 4)]), Lane("bb", [Box("F", 1, 4)])]
    assert text(lanes, 8) == [" a FFFF..BB", "bb ..FFFFFF"]


def test_ranges_of_stages() -> None:
    assert ranges([0, 3, 4, 5, 7]) == "0, 3 to 5, 7"
