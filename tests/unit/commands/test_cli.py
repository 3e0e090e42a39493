"""The command line: how arguments reach the verbs, and how every end becomes an exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsv3 import __version__, cli
from dsv3.commands import calling, console
from dsv3.errors import CapacityError, ConfigError, NumericHealthError, Problem


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Bodies of the verbs that only note how they were called."""
    seen: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def noting(name: str) -> Any:
        def body(*arguments: Any, **options: Any) -> int:
            seen.append((name, arguments, options))
            return 0

        return body

    for module, verbs in {
        "train": ["train"],
        "plan": ["plan"],
        "doctor": ["doctor"],
        "evaluate": ["evaluate"],
        "data": ["prepare", "inspect"],
    }.items():
        fake = SimpleNamespace(**{verb: noting(f"{module}.{verb}") for verb in verbs})
        monkeypatch.setitem(sys.modules, f"dsv3.commands.{module}", fake)  # type: ignore[arg-type]
    return seen


def ending(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make `dsv3 train` end with an exception."""

    def train(*_: Any, **__: Any) -> int:
        raise error

    monkeypatch.setitem(sys.modules, "dsv3.commands.train", SimpleNamespace(train=train))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "seed=1,2", "balance=none", "--dry-run", "--config-dir", "mine", "--json"],
        ["seed=1,2", "--json", "--config-dir=mine", "balance=none", "-m", "--dry-run"],
        ["seed=1,2", "balance=none", "--multirun", "--dry-run", "--json", "--config-dir", "mine"],
    ],
)
def test_overrides_and_flags_come_in_any_order(words: list[str], calls: Any) -> None:
    assert cli.run(["train", *words]) == 0
    options = {
        "multirun": True,
        "config_dir": Path("mine"),
        "dry_run": True,
        "watch": False,
        "retry": False,
        "strict": False,
        "as_json": True,
    }
    assert calls == [("train.train", (["seed=1,2", "balance=none"],), options)]


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (
            ["plan", "-m", "seed=1,2", "--gpus", "8"],
            (
                "plan.plan",
                (["seed=1,2"],),
                {
                    "multirun": True,
                    "config_dir": None,
                    "strict": False,
                    "as_json": False,
                    "hardware": "h800",
                    "gpus": 8,
                    "imbalance": 1.0,
                    "usd_per_gpu_hour": None,
                    "svg": None,
                    "html": None,
                    "trace": False,
                    "published": False,
                },
            ),
        ),
        (
            ["data", "prepare", "data=jsonl"],
            ("data.prepare", (["data=jsonl"],), {"config_dir": None, "as_json": False}),
        ),
        (["data", "inspect"], ("data.inspect", ([],), {"config_dir": None, "as_json": False})),
        (
            ["eval", "runs/x", "--step", "3", "evaluation.sequences=4"],
            (
                "evaluate.evaluate",
                ("runs/x", ["evaluation.sequences=4"]),
                {"step": 3, "ema": False, "as_json": False},
            ),
        ),
        (["doctor", "--json"], ("doctor.doctor", ([],), {"config_dir": None, "as_json": True})),
    ],
)
def test_verbs(words: list[str], call: Any, calls: Any) -> None:
    assert cli.run(words) == 0
    assert calls == [call]


@pytest.mark.parametrize("verb", ["train", "plan"])
def test_cfg_prints_and_starts_nothing(verb: str, calls: Any, capsys: Any) -> None:
    assert cli.run([verb, "seed=5", "--cfg", "job"]) == 0
    assert capsys.readouterr().out.startswith("seed: 5\n")
    assert calls == []


def test_problems_are_lines_on_stderr(monkeypatch: Any, capsys: Any) -> None:
    problems = [Problem("seed=x", "must be a whole number", "give one"), Problem("", "and so on")]
    ending(monkeypatch, ConfigError(problems))
    assert cli.run(["train"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "error[config]: seed=x: must be a whole number; give one\nerror[config]: and so on\n"
    )


def test_problems_are_json_on_stdout_too(monkeypatch: Any, capsys: Any) -> None:
    ending(monkeypatch, CapacityError(Problem("gpus=0", "needs 8 GPUs", "see plan")))
    assert cli.run(["train", "--json"]) == 3
    captured = capsys.readouterr()
    assert captured.err == "error[capacity]: gpus=0: needs 8 GPUs; see plan\n"
    problem = {"setting": "gpus=0", "rule": "needs 8 GPUs", "remedy": "see plan"}
    assert json.loads(captured.out) == {
        "error": {"id": "capacity", "exit_code": 3, "problems": [problem]}
    }


def test_a_defect_is_one_line_and_a_traceback_only_on_request(
    monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.delenv("DSV3_DEBUG", raising=False)
    ending(monkeypatch, RuntimeError("first\nsecond"))
    assert cli.run(["train"]) == 70
    assert capsys.readouterr().err == (
        "error[internal]: RuntimeError: first second;"
        " this is a defect of dsv3, --debug shows where\n"
    )
    monkeypatch.setenv("DSV3_DEBUG", "")  # so that what --debug sets is undone after the test
    assert cli.run(["train", "--debug"]) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_debug_keeps_the_exit_code_of_an_error(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("DSV3_DEBUG", "1")
    ending(monkeypatch, NumericHealthError("loss is nan"))
    assert cli.run(["train"]) == 5
    captured = capsys.readouterr().err
    assert "Traceback" in captured
    assert captured.endswith("error[numeric]: loss is nan\n")


def test_interrupted(monkeypatch: Any, capsys: Any) -> None:
    ending(monkeypatch, KeyboardInterrupt())
    assert cli.run(["train"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("words", [["train", "--multirn"], ["trian"], ["config", "sho"]])
def test_what_cannot_be_parsed_is_a_usage_error(words: list[str], capsys: Any) -> None:
    assert cli.run([*words, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("Usage: dsv3")
    assert json.loads(captured.out)["error"]["id"] == "config"


def test_version(capsys: Any) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"dsv3 {__version__}\n"


def test_the_exit_code_is_that_of_the_process() -> None:
    process = command("train", "seed=abc", "modle=x", "--cfg", "job")
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.count("error[config]: ") == 2
    assert "Traceback" not in process.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    shell = (
        f"{sys.executable} -m dsv3 config show -m 'seed=range(1,9)' | true; exit ${{PIPESTATUS[0]}}"
    )
    process = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert process.returncode == calling.BROKEN_PIPE
    assert process.stderr == ""


HEAVY = ["torch", "numpy", "hydra", "omegaconf", "pydantic", "rich", "wandb", "deepspeed", "yaml"]


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        (["--help"], []),
        (["--version"], []),
        (["train", "--cfg", "job"], ["hydra", "omegaconf", "pydantic", "yaml"]),
    ],
)
def test_a_verb_imports_no_more_than_it_needs(words: list[str], allowed: list[str]) -> None:
    code = (
        "import sys; from dsv3.cli import run; run(sys.argv[1:]);"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    loaded = process.stderr.splitlines()[-1]
    assert [name for name in HEAVY if f"'{name}'" in loaded and name not in allowed] == []
    assert all(f"'{name}'" in loaded for name in allowed), "the list above is out of date"


def test_json_has_no_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        console.write_json({"loss": float("nan")})


def command(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "DSV3_DEBUG"}
    return subprocess.run(
        [sys.executable, "-m", "dsv3", *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
