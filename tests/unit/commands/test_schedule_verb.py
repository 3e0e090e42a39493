"""`dsv3 config schedule`: table, plots, JSON and the picture."""

import io
import json
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from dsv3 import cli
from dsv3.config.compose import compose

WORDS = [
    "config",
    "schedule",
    "model=moe_nano",
    "schedule.total_tokens=1_000_000",
    "schedule.batch_size_quantum=2",
]
BRAILLE = re.compile("[\u2801-\u28ff]")


def printed(capsys: Any, *words: str) -> str:
    assert cli.run([*WORDS, *words]) == 0
    return str(capsys.readouterr().out)


def test_the_table_has_every_phase_in_absolute_units(capsys: Any) -> None:
    text = printed(capsys, "mtp=depth1")
    assert "moe_nano: 1M tokens in 506 steps" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["linear", "0", "to", "0.004", "0", "to", "20k", "1", "25"] in [
        line[2:] for line in lines
    ]
    assert ["cosine", "0.004", "to", "4e-4", "675.675k", "to", "966.216k", "348", "142"] in lines
    assert "2 to 8" in text
    assert "1.327e-4" in text
    for title in ("learning rate", "batch size (sequences)", "gamma", "lambda"):
        assert title in text


def test_every_curve_is_plotted_without_colours_where_nobody_sees_them(capsys: Any) -> None:
    text = printed(capsys, "mtp=depth1")
    assert "\x1b" not in text
    assert text.count(" over tokens") == 4
    assert len(BRAILLE.findall(text)) > 200
    assert max(len(line) for line in text.splitlines()) <= 120


def test_what_is_zero_throughout_is_no_curve(capsys: Any) -> None:
    text = printed(capsys, "balance=none")
    assert "gamma" not in text
    assert "lambda" not in text


def test_a_terminal_that_knows_ascii_only_gets_the_table(monkeypatch: Any) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.run(WORDS) == 0
    stream.flush()
    text = stream.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert "learning rate" in text
    assert "over tokens" not in text


def test_json_has_phases_and_points(capsys: Any) -> None:
    data = json.loads(printed(capsys, "--json"))
    config = compose(WORDS[2:]).config
    assert data["steps"] == config.schedule.num_steps
    lr, batch, gamma = data["curves"]
    assert (lr["name"], batch["name"], gamma["name"]) == ("lr", "batch_size", "bias_update_speed")
    assert sum(phase["steps"] for phase in lr["phases"]) == data["steps"]
    assert len(lr["points"]) > 100
    last = lr["points"][-1]
    assert last["value"] == config.schedule.lr_at(last["tokens"])
    assert {point["value"] for point in batch["points"]} == {2, 4, 6, 8}


def test_the_picture_is_an_svg_and_the_same_every_time(capsys: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    printed(capsys, "--svg", str(first))
    printed(capsys, "--svg", str(second), "--json")
    assert first.read_bytes() == second.read_bytes()
    root = ET.fromstring(first.read_bytes())
    assert root.tag.endswith("}svg")
    texts = [each.text for each in root.iter() if each.tag.endswith("}text")]
    assert {"learning rate", "batch size (sequences)", "bias update speed (gamma)"} <= set(texts)
    assert b"<dc:date>" not in first.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "b.svg"]


@pytest.mark.parametrize("name", ["missing/a.svg", "."])
def test_a_picture_that_cannot_be_written_is_told(name: str, capsys: Any, tmp_path: Path) -> None:
    path = tmp_path / name
    assert cli.run([*WORDS, "--svg", str(path)]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"--svg {path}: " in captured.err
    assert "name a file that can be written" in captured.err


def test_a_wrong_configuration_is_refused_as_everywhere(capsys: Any) -> None:
    assert cli.run([*WORDS, "schedule/lr_curve=wsdd"]) == 2
    assert "did you mean wsd?" in capsys.readouterr().err
