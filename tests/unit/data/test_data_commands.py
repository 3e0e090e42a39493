"""`data prepare` and `data inspect`: what is printed, where, and what cannot reach a terminal."""

import json

import pytest

from dsv3.commands.data import inspect, prepare
from dsv3.commands.progress import PlainProgress, preparation_progress


@pytest.fixture
def overrides(records, write_jsonl, tmp_path):
    path = write_jsonl(records)
    return [
        "model=moe_nano",
        "data=jsonl",
        f"data.path={path}",
        "data.validation_fraction=0.2",
        f"data.cache_dir={tmp_path / 'cache'}",
        "schedule.sequence_length=32",
    ]


def test_prepare_prints_a_table_on_stdout_and_progress_on_stderr(overrides, capsys):
    assert prepare(overrides, config_dir=None, as_json=False) == 0
    out, err = capsys.readouterr()
    for word in ("web", "code", "all", "fingerprint", "unigram entropy", "directory"):
        assert word in out
    stages = ("train tokenizer", "encode", "write")
    assert err.splitlines()[-3:] == [f"data: {stage}" for stage in stages]


def test_prepare_as_json_counts_every_document(overrides, records, capsys):
    assert prepare(overrides, config_dir=None, as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["domains"]) == {"web", "code"}
    assert len(report["fingerprint"]) == 64
    for name, counts in report["domains"].items():
        documents = counts["train_documents"] + counts["validation_documents"]
        assert documents == sum(record["domain"] == name for record in records)
    tokens = sum(counts["train_tokens"] for counts in report["domains"].values())
    assert report["train_tokens"] == tokens
    assert "samples" not in report


def test_inspect_shows_samples_of_the_run_and_of_every_domain(overrides, capsys):
    assert inspect(overrides, config_dir=None, as_json=True) == 0
    samples = json.loads(capsys.readouterr().out)["samples"]
    assert [s["sample"] for s in samples if s["split"] == "train"] == [0, 1]
    assert {s["domain"] for s in samples if s["split"] == "validation"} == {"web", "code"}
    assert inspect(overrides, config_dir=None, as_json=False) == 0
    assert "--- validation, code" in capsys.readouterr().out


def test_control_characters_of_a_text_do_not_reach_the_terminal(write_jsonl, overrides, capsys):
    nasty = [
        {"text": f"\x1b[2J\x9b31m {n} [bold]x[/bold]", "domain": "\x1b[31mred"} for n in range(200)
    ]
    path = write_jsonl(nasty, "nasty.jsonl")
    assert inspect([*overrides, f"data.path={path}"], config_dir=None, as_json=False) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x9b" not in out
    assert "\\x1b[2J" in out and "\\x1b[31mred" in out and "[bold]x[/bold]" in out


def test_plain_progress_says_each_stage_once_and_then_every_ten_seconds(capsys, monkeypatch):
    now = iter([0.0, 1.0, 12.0, 13.0, 14.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    show = PlainProgress()
    for stage, done, total in (
        ("encode", 0, 8),
        ("encode", 1, 8),
        ("encode", 4, 8),
        ("write", 0, 9),
        ("write", 9, 9),
    ):
        show(stage, done, total)
    assert capsys.readouterr().err.splitlines() == [
        "data: encode",
        "data: encode 50%",
        "data: write",
    ]


def test_bars_are_shown_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with preparation_progress() as show:
        show("wait", 0, None)
        show("encode", 50, 100)
        show("write", 9, 9)
    err = capsys.readouterr().err
    assert "encode" in err and "write" in err and "100%" in err
