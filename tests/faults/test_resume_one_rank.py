"""A run that is stopped or killed and asked for again equals one that never was, bit for bit."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from faults.small_run import metrics, overrides, tensors, write_text

STEPS = 120


def start(words, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "dsv3", "train", *words, "--json"],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(words, cwd):
    process = start(words, cwd)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out)["runs"][0]


def wait_for_step(root: Path, step: int, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        for file in root.glob("*/metrics.jsonl"):
            if file.read_bytes().count(b"\n") >= step:
                return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was never reached: {process.communicate()}")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """One uninterrupted run, and the words that ask for it."""
    home = tmp_path_factory.mktemp("reference")
    words = overrides(write_text(home / "text.jsonl"), steps=STEPS)
    return words, finish([*words, "run_root=whole"], home), home


@pytest.mark.parametrize("kind", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_interrupted_equals_uninterrupted(reference, kind):
    words, whole, home = reference
    root = home / f"cut-{kind}"
    again = [*words, f"run_root={root.name}"]
    process = start(again, home)
    wait_for_step(root, 30, process)
    process.send_signal(signal.Signals[kind])
    process.communicate(timeout=60)
    assert process.returncode == {"SIGTERM": 85, "SIGINT": 130, "SIGKILL": -9}[kind]
    if kind == "SIGKILL":
        _wait_until_free(root)
    done = [line for line in metrics(next(root.iterdir())) if "kind" not in line]
    assert 30 <= len(done) < STEPS, "the run was to be cut in its middle"

    result = finish(again, home)
    assert result["trained"]
    a, b = Path(home, whole["directory"]), Path(home, result["directory"])
    assert a.name == b.name
    assert metrics(a) == metrics(b)
    assert tensors(a / f"checkpoints/step-{STEPS}") == tensors(b / f"checkpoints/step-{STEPS}")
    timeless = {"finished_at", "last_attempt_s"}
    assert {k: v for k, v in whole["result"].items() if k not in timeless} == {
        k: v for k, v in result["result"].items() if k not in timeless
    }


def _wait_until_free(root: Path):
    """The orphaned rank gets a signal from the kernel, saves and lets go of the run's lock."""
    run = next(root.iterdir())
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not (run / "lock").read_text():
            return
        time.sleep(0.05)
    raise AssertionError("the rank outlived its launcher")


def test_asked_again_nothing_trains(reference):
    words, whole, home = reference
    before = sorted((p, p.stat().st_mtime_ns) for p in Path(home, "whole").rglob("*"))
    again = finish([*words, "run_root=whole"], home)
    assert not again["trained"]
    assert again["result"] == whole["result"]
    after = sorted((p, p.stat().st_mtime_ns) for p in Path(home, "whole").rglob("*"))
    assert before == after


def test_edited_data_is_refused_with_the_remedy(reference, tmp_path):
    words, _, home = reference
    text = home / "text.jsonl"
    original = text.read_text()
    try:
        write_text(text, seed=1)
        process = start([*words, "run_root=whole"], home)
        out, err = process.communicate(timeout=120)
    finally:
        text.write_text(original)
    assert process.returncode == 6
    assert "run.tag=" in err
    assert "Traceback" not in err + out


def test_one_of_two_wins(reference):
    words, _, home = reference
    again = [*words, "run_root=race", f"schedule.total_tokens={3000 * 128}"]
    first = start(again, home)
    wait_for_step(home / "race", 1, first)
    second = start(again, home)
    _, err = second.communicate(timeout=120)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert first.returncode == 85
    assert second.returncode == 3
    assert "is training this run" in err
