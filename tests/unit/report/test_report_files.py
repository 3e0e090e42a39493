"""The report on disk and in the terminal: Markdown, SVG, CSV and JSON say what the page says."""

import csv
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

import fabricated
from dsv3.errors import CapacityError
from dsv3.report.page import build
from dsv3.report.study import Study
from dsv3.report.terminal import show
from dsv3.report.verdicts import Judgement, judge
from dsv3.report.write import write

ARMS = ("aux_loss", "aux_free", "none")


@pytest.fixture(scope="module")
def study() -> Study:
    return fabricated.study(arms=ARMS, seeds=(1, 2), failed=[("none", 2)])


@pytest.fixture(scope="module")
def judgement(study: Study) -> Judgement:
    return judge(study)


@pytest.fixture(scope="module")
def written(study: Study, judgement: Judgement, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    write(directory, build(study, judgement), study, judgement)
    return directory


def test_files_are_the_same_each_time(study: Study, judgement: Judgement, written: Path) -> None:
    before = {path: path.read_bytes() for path in sorted(written.rglob("*")) if path.is_file()}
    stamps = {path: path.stat().st_mtime_ns for path in before}
    stray = written / "figures" / "old.svg"
    stray.write_text("<svg/>")
    write(written, build(study, judgement), study, judgement)
    after = {path: path.read_bytes() for path in sorted(written.rglob("*")) if path.is_file()}
    assert after == before
    assert {path: path.stat().st_mtime_ns for path in after} == stamps
    names = {path.name for path in before}
    assert {"report.html", "report.md", "runs.csv", "summary.csv", "report.json"} <= names


def test_links_of_the_markdown_are_there(written: Path) -> None:
    tokens = MarkdownIt().enable("table").parse((written / "report.md").read_text())
    inline = [child for token in tokens for child in token.children or ()]
    images = [child.attrs["src"] for child in inline if child.type == "image"]
    figures = {f"figures/{path.name}" for path in (written / "figures").iterdir()}
    assert len(images) == 8
    assert set(images) == figures
    assert not [token for token in tokens if token.type == "html_block"]
    heads = [token for token in tokens if token.type == "heading_open"]
    assert heads[0].tag == "h1" and len(heads) > 10
    assert len([token for token in tokens if token.type == "table_open"]) >= 6


def test_a_figure_stands_alone(written: Path) -> None:
    for path in (written / "figures").iterdir():
        root = ET.parse(path).getroot()
        style = root.find("{http://www.w3.org/2000/svg}style")
        assert style is not None and style.text is not None
        defined = set(re.findall(r"(--[\w-]+):", style.text))
        used = set(re.findall(r"var\((--[\w-]+)\)", path.read_text()))
        assert used <= defined and len(used) >= 3
        assert "prefers-color-scheme:dark" in style.text


def test_csv_and_json_agree(written: Path, study: Study) -> None:
    data = json.loads((written / "report.json").read_text())
    for file, key in (("runs.csv", "runs"), ("summary.csv", "summary")):
        with (written / file).open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        assert len(rows) == len(data[key]) > 0
        for row, same in zip(rows, data[key], strict=True):
            assert list(row) == list(same)
            for name, value in same.items():
                assert row[name] == ("" if value is None else str(value))
    run = next(row for row in data["runs"] if row["arm"] == "aux_free" and row["seed"] == 2)
    ours = next(each for each in study.runs if each.id == run["id"])
    assert ours.result is not None
    assert run["bpb"] == ours.result["bpb"]
    deciding = [row for row in data["summary"] if row["decides"]]
    assert [row["arm"] for row in deciding] == list(ARMS)
    assert data["noise"]["metric"] == "bpb"


def test_numbers_of_the_page_are_those_of_the_file(written: Path) -> None:
    data = json.loads((written / "report.json").read_text())
    text = (written / "report.md").read_text()
    row = next(r for r in data["summary"] if r["decides"] and r["arm"] == "aux_free")
    assert f"Difference {row['difference']:+.4f};" in text
    assert f"smallest detectable difference {row['detectable']:.4f};" in text
    assert f"**aux\\_free**: {row['verdict']}." in text


@pytest.mark.parametrize("name", ["=1+1", "+a", "@b", "-c"])
def test_no_cell_is_a_formula(name: str, tmp_path: Path) -> None:
    study = fabricated.study(arms=("none", name), seeds=(1,))
    judgement = judge(study)
    write(tmp_path, build(study, judgement), study, judgement)
    with (tmp_path / "runs.csv").open(newline="") as lines:
        arms = {row["arm"] for row in csv.DictReader(lines)}
    assert arms == {"none", f" {name}"}


def test_a_disk_that_refuses_is_named(study: Study, judgement: Judgement, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CapacityError, match="--output"):
        write(tmp_path / "file" / "report", build(study, judgement), study, judgement)


@pytest.mark.parametrize(
    "arms", [ARMS, tuple(f"arm {n}" for n in range(12)), ("none", fabricated.HOSTILE)]
)
def test_eighty_columns_are_enough(
    arms: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    study = fabricated.study(arms=arms, seeds=(1, 2), missing=[(arms[1], 2)])
    judgement = judge(study)
    show(Console(width=80, highlight=False), build(study, judgement), study, judgement)
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines()) <= 80
    assert "bits per byte" in printed and "missing" in printed
    assert "..." not in printed and "\u2026" not in printed
    assert "\x07" not in printed and "\u202e" not in printed
