"""`dsv3 plan --html`: one page that says what the terminal says, alone, safe, always the same."""

import dataclasses
from pathlib import Path

import pytest

import fabricated
from dsv3 import lanes
from dsv3.cli import run
from dsv3.commands.plan_page import sweep_page
from dsv3.commands.plan_sweep import SweepPlan, plan_sweep, sweep_rows
from dsv3.config.hardware import load_hardware
from dsv3.plan.setting import Setting
from dsv3.report.blocks import Details, Page, Table
from dsv3.report.html import html
from dsv3.sweep.expand import configurations
from unit.report.reader import Reader

SWEEP = ["recipe=table5_balance", "model=moe_228b"]
H800 = Setting("h800", load_hardware("h800"), gpus=256)


def written(path: Path, *words: str) -> tuple[str, Reader]:
    assert run(["plan", *words, "--html", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    return text, Reader(text)


def blocks(page: Page, name: str) -> tuple[object, ...]:
    return next(section.blocks for section in page.sections if section.name == name)


@pytest.fixture(scope="module")
def planned() -> SweepPlan:
    return plan_sweep(configurations(SWEEP, multirun=False, config_dir=None), H800)


def test_a_sweep_is_one_page_with_one_picture(
    planned: SweepPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, reader = written(tmp_path / "a.html", *SWEEP, "--gpus", "256")
    assert "the plan is written to" in capsys.readouterr().err
    reader.refuse_anything_loaded()
    assert len(reader.all("svg")) == 1
    assert text.count("@media(prefers-color-scheme:dark)") == 1
    assert (tmp_path / "a.html").read_text() == html(sweep_page(planned))
    links = [link["href"] for link in reader.all("a")]
    names = ["fit", "runs", "timeline", "details", "assumptions"]
    assert links == ["#fit", *(f"#{name}" for name in names)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.html"]


def test_the_page_says_what_the_terminal_says(planned: SweepPlan) -> None:
    page = sweep_page(planned)
    table = blocks(page, "runs")[0]
    assert isinstance(table, Table)
    rows = [tuple(cell.replace("\n", " ") for cell in row) for row in sweep_rows(planned)]
    assert list(table.rows) == rows
    totals = planned.totals
    assert page.lead.startswith(f"{totals['runs']} runs take ")
    assert "on 256 H800, $" in page.lead and "of disk" in page.lead
    said = Reader(html(page)).words()
    assert "Every run fits into the" in said
    assert "arXiv 2505.09343, section 4.1" in said and "MaxVio 1: 2 times the mean" in said
    assert "$2 a GPU-hour" in said


def test_what_does_not_fit_comes_first_with_what_makes_it_fit() -> None:
    runs = configurations([*SWEEP, "recompute=none"], multirun=False, config_dir=None)
    page = sweep_page(plan_sweep(runs, H800))
    said = Reader(html(page)).words()
    assert "2 of 2 runs would not fit" in said
    assert said.index("recompute=full makes it fit") < said.index("Each run by itself")
    details = [each for each in blocks(page, "details") if isinstance(each, Details)]
    tables = [b.name for each in details for b in each.blocks if isinstance(b, Table)]
    assert len([name for name in tables if name.startswith("advice")]) == len(details) == 2


def test_runs_that_need_the_same_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["model=moe_nano", "seed=1,2,3", "schedule.micro_batch_size=1,2"]
    planned = plan_sweep(configurations(words, multirun=True, config_dir=None), H800)
    page = sweep_page(planned)
    assert [each.summary.count("seed=") for each in blocks(page, "details")] == [3, 3]  # type: ignore[attr-defined]
    arms = ["model=moe_nano", "seed=1,2", "balance=none,aux_free"]  # the same memory and time
    others = plan_sweep(configurations(arms, multirun=True, config_dir=None), H800)
    assert len(blocks(sweep_page(others), "details")) == 2
    whole = next(page.figures())
    assert whole.svg.count("seed=3") >= 2 and "are drawn" not in whole.caption
    monkeypatch.setattr(lanes, "MOST_DRAWN", 2)
    few = next(sweep_page(planned).figures())
    assert "The first 2 of 6 runs are drawn." in few.caption
    assert "seed=3" not in few.svg


def test_hostile_names_are_text(planned: SweepPlan) -> None:
    names = [fabricated.HOSTILE, "data.path=</svg><img src=x onerror=alert(1)>"]
    jobs = [
        dataclasses.replace(each, job=dataclasses.replace(each.job, name=name))
        for each, name in zip(planned.placed, names, strict=True)
    ]
    hostile = dataclasses.replace(planned, names=names, placed=jobs)
    reader = Reader(html(sweep_page(hostile)))
    reader.refuse_anything_loaded()
    assert len(reader.all("svg")) == 1
    assert "<script>alert(1)</script>&" in reader.words()
    assert "onerror=alert(1)>" in reader.words()
    assert "\u202e" not in reader.words() and "\x07" not in reader.words()


def test_one_run_has_its_pipeline_and_what_it_lacks(tmp_path: Path) -> None:
    _, reader = written(tmp_path / "run.html", "model=moe_228b", "recompute=none")
    reader.refuse_anything_loaded()
    said = reader.words()
    assert len(reader.all("svg")) == 1 and "stage 15" in said
    assert "does not fit into" in said and "What makes it smaller" in said
    for part in ("228.748B", "DualPipeV", "all of it", "Asked for: model=moe_228b", "4 to 15"):
        assert part in said
    _, alone = written(tmp_path / "run.html", "model=moe_nano", "--hardware", "h100")
    assert not alone.all("svg")
    assert "give --usd-per-gpu-hour" in alone.words() and " fits into " in alone.words()
    assert "makes it smaller" not in alone.words()


def test_a_search_is_a_table_of_layouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=moe_16b", "precision=bf16", "--gpus", "16", "--hardware", "h200"]
    _, reader = written(tmp_path / "found.html", *words)
    printed = [line for line in capsys.readouterr().out.splitlines() if "parallelism." in line]
    said = reader.words()
    assert len(printed) > 1
    assert all(line.partition(": ")[2] in said for line in printed)
    assert not reader.all("svg")


def test_json_is_still_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "run.html", "model=moe_nano", "--json")
    assert capsys.readouterr().out.startswith("{")


@pytest.mark.parametrize("words", [["model=moe_nano"], ["model=moe_nano", "seed=1,2", "-m"]])
def test_a_file_that_cannot_be_written_is_named(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "missing" / "plan.html"
    assert run(["plan", *words, "--html", str(path)]) == 3
    said = capsys.readouterr().err
    assert f"--html {path}" in said and "name a file that can be written" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trace", "--html", "a"], "--html a: is not written with --trace"),
        (["--published", "--html", "a"], "--html a: is not written with --published"),
        (["--published", "--svg", "a"], "--svg a: is not written with --published"),
        (["--gpus", "512", "--svg", "a"], "--svg a: has nothing to draw"),
    ],
)
def test_a_page_that_would_not_be_written_is_refused(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(["plan", "model=moe_228b", *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
