"""A run that is stopped, killed and asked for again equals one that never was, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from faults.small_run import CHECKPOINT_EVERY, metrics, overrides, tensors, write_text
from patience import HANG_S

pytestmark = pytest.mark.slow

STEPS = 150
# How the run is cut, one after the other, and the exit code of `dsv3 train`. SIGKILL is for the
# rank: nothing is saved, and what it did since its last checkpoint has to be done again.
CUTS = {"SIGTERM": 85, "SIGINT": 130, "SIGKILL": 8}

# Limits that make alarms come and go, in windows that a kill and its checkpoint (step 80) cut.
ALARMED = {
    "health__window_steps": 3,
    "health__lowest_load_entropy": 0.48,
    "health__largest_bias_spread": 0.02,
}
# What has state of its own: biases, those of the MTP module too, and the counts of the step before.
ARMS = {
    "aux_free": ["balance=aux_free", "mtp=depth1"],
    "previous_step": ["balance=aux_batch", "balance.batch_counts=previous_step"],
}


@dataclass
class Ended:
    """How one attempt ended, and what metrics.jsonl held then."""

    exit_code: int
    lines: list[dict[str, object]]
    start_written_ns: int

    @property
    def step(self) -> int:
        return int(self.lines[-1]["step"])


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
    out, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, err
    return json.loads(out)["runs"][0]


def wait_for_rank(run: Path, step: int, process) -> int:
    """The pid of the rank, as soon as `step` is done."""
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline and process.poll() is None:
        lines = (run / "metrics.jsonl").read_bytes() if (run / "metrics.jsonl").exists() else b""
        if lines.count(b"\n") > step:
            return json.loads((run / "lock").read_text())["pid"]
        time.sleep(0.002)
    raise AssertionError(f"step {step} was never reached: {process.communicate()}")


def evaluations(run: Path) -> dict[str, bytes]:
    found = {f"{p.parent.name}/{p.name}": p.read_bytes() for p in run.glob("evaluations/*/*")}
    assert len(found) == 2 * STEPS // 25
    return found


def alarms(run: Path) -> list[str]:
    """The alarms in events.jsonl, as lines without the time of day."""
    lines = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    found = [line for line in lines if line["event"].startswith("alarm")]
    return [json.dumps({k: v for k, v in line.items() if k != "time"}) for line in found]


@contextmanager
def paused(words, cwd, run: Path, step: int):
    """Train until soon after `step` and halt the rank: it cannot end before it is sent a signal."""
    process = start(words, cwd)
    rank = None
    try:
        rank = wait_for_rank(run, step, process)
        os.kill(rank, signal.SIGSTOP)
        yield process, rank
    finally:
        process.kill()
        process.communicate()
        if rank is not None:
            with suppress(ProcessLookupError):
                os.kill(rank, signal.SIGCONT)  # it follows its launcher


@pytest.fixture(scope="module", params=ARMS)
def reference(request, tmp_path_factory):
    """One uninterrupted run, and the words that ask for it."""
    home = tmp_path_factory.mktemp("reference")
    alarmed = overrides(write_text(home / "text.jsonl"), steps=STEPS, **ALARMED)
    words = [*alarmed, *ARMS[request.param]]
    return words, finish([*words, "run_root=whole"], home), home


@pytest.fixture(scope="module")
def interrupted(reference):
    """The same run cut three times: how each attempt ended, and what a rival was told meanwhile."""
    words, whole, home = reference
    again = [*words, "run_root=cut"]
    run = home / "cut" / Path(whole["directory"]).name
    ended, rival = {}, None
    for number, kind in enumerate(CUTS, start=1):
        with paused(again, home, run, 30 * number) as (process, rank):
            if rival is None:
                rival = start(again, home)
                rival = (rival.communicate(timeout=HANG_S)[1], rival.returncode)
            if kind == "SIGKILL":
                os.kill(rank, signal.SIGKILL)
            else:
                process.send_signal(signal.Signals[kind])
                os.kill(rank, signal.SIGCONT)
            _, errors = process.communicate(timeout=HANG_S)
        assert "Traceback" not in errors
        written_ns = (run / "start.json").stat().st_mtime_ns
        ended[kind] = Ended(process.returncode, metrics(run), written_ns)
    return again, run, ended, rival


@pytest.mark.parametrize("kind", CUTS)
def test_a_cut_has_its_exit_code_and_leaves_the_lines_of_its_steps(reference, interrupted, kind):
    _, whole, home = reference
    _, _, ended, _ = interrupted
    assert ended[kind].exit_code == CUTS[kind]
    assert ended[kind].step < STEPS, "the run was to be cut in its middle"
    expected = metrics(Path(home, whole["directory"]))
    assert ended[kind].lines == expected[: len(ended[kind].lines)]


def test_what_a_run_starts_from_is_written_once(reference, interrupted):
    _, whole, home = reference
    _, run, ended, _ = interrupted
    assert len({one.start_written_ns for one in ended.values()}) == 1, "a resume wrote it anew"
    start = json.loads((run / "start.json").read_text())
    assert start == json.loads(Path(home, whole["directory"], "start.json").read_text())
    assert ("weights.mtp" in start) == any("mtp=" in word for word in reference[0])


def test_of_two_that_train_the_same_run_the_second_is_refused(interrupted):
    errors, exit_code = interrupted[3]
    assert exit_code == 3
    assert "is training this run" in errors


def test_interrupted_equals_uninterrupted(reference, interrupted):
    _, whole, home = reference
    again, run, ended, _ = interrupted
    result = finish(again, home)
    assert result["trained"]
    reference_run = Path(home, whole["directory"])
    assert metrics(run) == metrics(reference_run)
    assert evaluations(run) == evaluations(reference_run)
    last = f"checkpoints/step-{STEPS}"
    assert tensors(run / last) == tensors(reference_run / last)
    timeless = {"finished_at", "last_attempt_s"}
    assert {k: v for k, v in result["result"].items() if k not in timeless} == {
        k: v for k, v in whole["result"].items() if k not in timeless
    }
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    begun = [event["step"] for event in events if event["event"] == "started"]
    assert begun[:3] == [0, ended["SIGTERM"].step, ended["SIGINT"].step]
    assert begun[3] % CHECKPOINT_EVERY == 0
    # Training goes on while a checkpoint is written, to the next one at most.
    assert 0 <= ended["SIGKILL"].step - begun[3] <= 2 * CHECKPOINT_EVERY
    # What was done twice after the SIGKILL was said twice.
    assert set(alarms(run)) == set(alarms(reference_run))
    assert len(set(alarms(run))) > 2


def test_asked_again_nothing_trains(reference):
    words, whole, home = reference
    before = sorted((p, p.stat().st_mtime_ns) for p in Path(home, "whole").rglob("*"))
    again = finish([*words, "run_root=whole"], home)
    assert not again["trained"]
    assert again["result"] == whole["result"]
    after = sorted((p, p.stat().st_mtime_ns) for p in Path(home, "whole").rglob("*"))
    assert before == after


def test_edited_data_is_refused_with_the_remedy(reference):
    words, _, home = reference
    text = home / "text.jsonl"
    original = text.read_text()
    try:
        write_text(text, seed=1)
        process = start([*words, "run_root=whole"], home)
        out, err = process.communicate(timeout=HANG_S)
    finally:
        text.write_text(original)
    assert process.returncode == 6
    assert "run.tag=" in err
    assert "Traceback" not in err + out
