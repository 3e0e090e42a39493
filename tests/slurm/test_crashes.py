"""The tracer sees every call that changes something, and kills before it, not after."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.crashes import Command, Crashes, Made

# Writes an intent, starts a program that leaves two files, and writes what came of it.
PROGRAM = """
import os, subprocess, sys, threading
def durable(name, text):
    with open(name + ".new", "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(name + ".new", name)
os.mkdir("run")
open("run/nothing", "a").close()
open("/dev/null", "w").write("not counted")
open(__file__).read()
durable("run/intent", "one")
subprocess.run(["./submit"], check=True, stdout=subprocess.DEVNULL)
threads = [threading.Thread(target=durable, args=("run/done", "two"))]
for each in threads: each.start()
for each in threads: each.join()
os.unlink("run/nothing")
print("through")
sys.exit(85)
"""
SUBMIT = "#!/bin/bash\n: > run/first\n: > run/second\n"
ORDER = [
    ("mkdir", "run"), ("openat", "run/nothing"),
    ("openat", "run/intent.new"), ("write", "run/intent.new"), ("fsync", "run/intent.new"),
    ("rename", "run/intent"),
    ("execve", "submit"), ("openat", "run/first"), ("openat", "run/second"),
    ("openat", "run/done.new"), ("write", "run/done.new"), ("fsync", "run/done.new"),
    ("rename", "run/done"), ("unlink", "run/nothing"), ("write", ".crash-stdout"),
]  # fmt: skip
# What each call leaves; renames take away what was renamed.
AFTER = {"rename": lambda files, path: files - {f"{path}.new"} | {path},
         "openat": lambda files, path: files | {path},
         "unlink": lambda files, path: files - {path}}  # fmt: skip


@pytest.fixture(scope="module")
def crashes() -> Iterator[Crashes]:
    started = Crashes()
    yield started
    started.close()


def place(directory: Path) -> Command:
    directory.mkdir()
    (directory / "program.py").write_text(PROGRAM)
    (directory / "submit").write_text(SUBMIT)
    (directory / "submit").chmod(0o755)
    buffered = {"PYTHONUNBUFFERED": ""}  # what is printed is one write
    return Command([sys.executable, "-S", "program.py"], directory, main=None, env=buffered)


def named(calls: list[Made], directory: Path) -> list[tuple[str, str]]:
    """Calls with paths below the directory, without the start of the interpreter."""
    found = [(each.name, each.path.removeprefix(f"{directory}/")) for each in calls]
    first = next(at for at, each in enumerate(found) if each[0] == "mkdir")
    return [(name.replace("mkdirat", "mkdir"), path) for name, path in found[first:]]


def files(directory: Path) -> set[str]:
    return {f"run/{path.name}" for path in directory.glob("run/*")}


def test_every_call_is_seen_in_its_order(crashes, tmp_path, monkeypatch):
    monkeypatch.delenv("SHELL", raising=False)  # without it bash looks up its user: not a change
    outcome = crashes.run(place(tmp_path / "a"))
    assert (outcome.code, outcome.killed, outcome.lingered) == (85, False, False)
    assert outcome.stdout == "through\n"
    assert named(outcome.calls, tmp_path / "a") == ORDER
    assert {each.program for each in outcome.calls if each.path.endswith("first")} == {"submit"}


@pytest.mark.parametrize("alone", [False, True])
def test_a_kill_leaves_what_was_done_before_it_and_nothing_after(crashes, tmp_path, alone):
    expected: set[str] = set()
    points = 0
    for outcome in crashes.each(
        lambda number: place(tmp_path / str(number)), alone=alone,
        counts=lambda call: str(tmp_path) in call.path and "program.py" not in call.path,
    ):  # fmt: skip
        directory = Path(outcome.at.path).parent
        directory = directory.parent if directory.name == "run" else directory
        name, path = ORDER[points]
        assert (outcome.at.name, outcome.at.path) == (name, str(directory / path))
        assert outcome.code == -9
        left = set(expected)
        if alone and path in {"run/first", "run/second"}:
            left |= {"run/first", "run/second"}  # the program went on
        assert files(directory) == left, outcome.at
        expected = AFTER.get(name, lambda files, path: files)(expected, path)
        points += 1
    assert points == len(ORDER)


def test_a_function_runs_in_a_fork_that_has_its_modules(crashes, tmp_path):
    command = Command(["dsv3", "--help"], tmp_path, env={"COLUMNS": "200"})
    outcome = crashes.run(command)
    assert outcome.code == 0, outcome.stderr
    assert "Usage: dsv3" in outcome.stdout
    assert {each.path for each in outcome.calls} == {str(tmp_path / ".crash-stdout")}


def test_what_never_ends_is_ended(crashes, tmp_path):
    command = Command(["sleep", "60"], tmp_path, main=None, timeout_s=0.3)
    outcome = crashes.run(command)
    assert (outcome.code, outcome.lingered) == (-9, True)
