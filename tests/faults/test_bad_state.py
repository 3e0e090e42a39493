"""Runs that broke: what was saved is used, what is damaged is passed over, nothing starts afresh.

The rank runs in this process: a process of its own costs seconds, and adds nothing here.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsv3 import cli, files
from dsv3.commands import train as train_verb
from dsv3.train import loop
from faults.small_run import launch_here, metrics, overrides, tensors, write_text
from patience import HANG_S

STEPS = 12
AT = {"schedule__sequence_length": 16, "checkpoint__every_steps": 4, "checkpoint__keep": 3}


def words(text: Path, root: Path, **values):
    # Half the sequence of the usual small run: twice the steps, so that there are STEPS of them.
    return overrides(text, steps=STEPS // 2, run_root=root, **{**AT, **values})


pytestmark = pytest.mark.usefixtures("ranks_here")


@pytest.fixture
def launches(monkeypatch):
    """The run directories in the order of their starts."""
    started = []

    def launch(run_dir, config, *, quiet=False):
        started.append(Path(run_dir))
        return launch_here(run_dir, config, quiet=quiet)

    monkeypatch.setattr(train_verb, "launch", launch)
    return started


@pytest.fixture
def ask(launches, capsys):
    """`dsv3 train`; returns the exit code, the runs of --json, and what stderr said."""

    def asked(*words, flags=()):
        code = cli.run(["train", *map(str, words), *flags])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        lines = captured.err.splitlines(keepends=True)
        return code, "".join(x for x in lines if not x.startswith("warning[")), captured.out

    return asked


@pytest.fixture(scope="module")
def whole(text, ranks_here, tmp_path_factory):
    """A finished run with three checkpoints, to be copied and damaged."""
    root = tmp_path_factory.mktemp("whole")
    assert cli.run(["train", *words(text, root), "--json"]) == 0
    [run] = root.iterdir()
    assert checkpoints(run) == ["step-12", "step-4", "step-8"]
    return run


@pytest.fixture
def unfinished(whole, tmp_path):
    """A copy of it that has not ended yet."""
    run = shutil.copytree(whole, tmp_path / "runs" / whole.name)
    (run / "DONE").unlink()
    return run


def checkpoints(run: Path):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def events(run: Path, name: str):
    lines = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == name]


def contents(root: Path):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def truncate(checkpoint: Path):
    part = next(checkpoint.glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:-1])


def flip(checkpoint: Path):
    part = next(checkpoint.glob("*.safetensors"))
    content = bytearray(part.read_bytes())
    content[-100] ^= 1
    part.write_bytes(content)


def empty(checkpoint: Path):
    for path in checkpoint.iterdir():
        path.unlink()


# Resuming -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [truncate, flip, empty])
def test_a_damaged_checkpoint_is_passed_over_aloud(damage, unfinished, whole, text, ask):
    damage(unfinished / "checkpoints" / "step-12")
    code, err, _ = ask(*words(text, unfinished.parent))
    assert code == 0
    assert "passed over a checkpoint: step-12: " in err
    assert f"going on from {unfinished}/checkpoints/step-8" in err
    assert [event["step"] for event in events(unfinished, "started")] == [0, 8]
    assert len(events(unfinished, "started")[1]["skipped_checkpoints"]) == 1
    assert metrics(unfinished) == metrics(whole)
    last = "checkpoints/step-12"
    assert tensors(unfinished / last) == tensors(whole / last)


def test_without_a_good_checkpoint_nothing_starts_afresh(unfinished, text, ask):
    for name in checkpoints(unfinished):
        flip(unfinished / "checkpoints" / name)
    lines = metrics(unfinished)
    code, err, _ = ask(*words(text, unfinished.parent))
    assert code == 4
    assert "none of its checkpoints is good; restore one, or run.tag=<name>" in err
    assert err.count("error[checkpoint]: ") == 4
    assert metrics(unfinished) == lines
    shutil.rmtree(unfinished / "checkpoints")
    code, err, _ = ask(*words(text, unfinished.parent))
    assert code == 4
    assert metrics(unfinished) == lines
    assert not (unfinished / "DONE").exists()


def test_never_refuses_what_is_there(unfinished, text, ask):
    before = checkpoints(unfinished), metrics(unfinished)
    code, err, _ = ask(*words(text, unfinished.parent, checkpoint__resume="never"))
    assert code == 4
    assert "checkpoint.resume=never: " in err
    assert (checkpoints(unfinished), metrics(unfinished)) == before


def test_must_refuses_a_run_that_never_saved(text, tmp_path, ask, launches):
    run = words(text, tmp_path / "runs", checkpoint__resume="must")
    assert ask(*run)[0] == 4
    assert not (tmp_path / "runs").exists()
    assert launches == []


def test_what_is_not_the_experiment_may_change(unfinished, whole, text, ask):
    shutil.rmtree(unfinished / "checkpoints" / "step-12")
    other = {
        "schedule__micro_batch_size": 4,
        "evaluation__every_steps": 2,
        "launcher__threads_per_rank": 1,
    }
    code, err, _ = ask(*words(text, unfinished.parent, **other))
    assert code == 0, err
    lines = [line for line in metrics(unfinished) if "kind" not in line]
    expected = [line for line in metrics(whole) if "kind" not in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[:8] == expected[:8]
    # Other micro batches add the same gradients in another order.
    assert [line["loss"] for line in lines] == pytest.approx(
        [e["loss"] for e in expected], rel=1e-5
    )
    evaluated = [line["step"] for line in metrics(unfinished) if "kind" in line]
    assert evaluated == [10, 12]
    attempt = json.loads((unfinished / "attempts.jsonl").read_text().splitlines()[1])
    assert attempt["changed"]["schedule.micro_batch_size"] == 4


@pytest.mark.parametrize("name", ["DONE", "config.yaml", "provenance.json"])
def test_a_damaged_file_of_the_run_is_named(name, unfinished, text, ask):
    (unfinished / name).write_text("{")
    before = contents(unfinished)
    code, err, _ = ask(*words(text, unfinished.parent))
    assert code == 4
    assert f"error[checkpoint]: {unfinished / name}: this file of the run is damaged" in err
    assert contents(unfinished) == before


def test_a_finished_run_is_told_from_storage_that_is_read_only(whole, text, ask, monkeypatch):
    def refused(run_root):
        raise AssertionError(run_root)

    monkeypatch.setattr("dsv3.commands.preparing.check_run_root", refused)
    monkeypatch.setattr("dsv3.runs.directory.check_run_root", refused)
    code, err, out = ask(*words(text, whole.parent))
    assert (code, err) == (0, "")
    assert "(it was done already; nothing was trained)" in out


# Numbers that are not finite ----------------------------------------------------------------------


def test_a_non_finite_step_ends_the_run_until_it_is_asked_to_try_again(text, tmp_path, ask):
    # Sane for the first half, then not: there is a good checkpoint when it happens.
    ends = (7_400_000_000_000, 14_800_000_000_000)
    phases = "[{{until:{},shape:constant,value:1e-33}},{{until:{},shape:constant,value:1}}]".format(
        *ends
    )
    values = {"schedule__lr": 1e30, "schedule__lr_curve__phases": phases}
    run = words(text, tmp_path, **values)
    code, err, _ = ask(*run)
    assert code == 5
    [directory] = tmp_path.iterdir()
    said = [line for line in err.splitlines() if line.startswith("error[numeric]: step 8: ")]
    assert len(said) == 1, err
    assert "first in " in said[0]
    assert f"the last good checkpoint is {directory}/checkpoints/step-4" in said[0]
    assert "lower schedule.lr" in said[0]
    failed = json.loads((directory / "FAILED").read_text())
    assert failed["exit_code"] == 5
    assert [line["step"] for line in metrics(directory)] == list(range(1, 8))
    assert len(events(directory, "failed")) == 1

    before = contents(tmp_path)
    code, err, _ = ask(*run)
    assert code == 5
    assert err.splitlines() == [said[0], f"{directory} ended so before; --retry tries it again"]
    code, err, out = ask(*run, flags=["--json"])
    assert (code, err) == (5, "")
    assert json.loads(out)["runs"][0]["failure"]["exit_code"] == 5
    assert contents(tmp_path) == before

    code, err, _ = ask(*run, flags=["--retry"])
    assert code == 5
    assert [event["step"] for event in events(directory, "started")] == [0, 4]


def test_weights_that_are_not_finite_are_never_saved(text, tmp_path, ask):
    run = words(text, tmp_path, schedule__lr=3e38, checkpoint__every_steps=1)
    code, err, _ = ask(*run)
    assert code == 5
    [directory] = tmp_path.iterdir()
    assert "step 1: master/model." in err
    assert " is not finite after the update" in err
    assert "nothing was saved, and there is no checkpoint yet" in err
    assert checkpoints(directory) == []
    assert (directory / "FAILED").exists()


def test_an_evaluation_that_is_not_finite_is_a_failure(text, tmp_path, ask, monkeypatch):
    evaluate = "dsv3.train.evaluation.Tally.loss"
    monkeypatch.setattr(evaluate, property(lambda _: float("nan")))
    code, err, _ = ask(*words(text, tmp_path))
    assert code == 5
    [directory] = tmp_path.iterdir()
    assert "step 12: the validation loss is nan" in err
    assert not (directory / "DONE").exists()
    assert "kind" not in metrics(directory)[-1]


# Storage and memory -------------------------------------------------------------------------------

FULL = """
mount -t tmpfs -o size={size} none runs || exit 99
{dsv3} train {words}; echo $?
grep -o 'checkpoint_failed", "step": [0-9]*' runs/*/events.jsonl | uniq  # the last is tried twice
wc -l < $(echo runs/*/metrics.jsonl)
mount -o remount,size=16m runs && {dsv3} train {words}; echo $?
"""


def test_a_disk_that_fills_costs_the_saves_and_nothing_else(text, tmp_path):
    """A real file system, too small for the second checkpoint, then large enough."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare(1) is not installed")
    (tmp_path / "runs").mkdir()
    run = words(text, Path("runs"))
    script = FULL.format(size="2200k", dsv3=f"{sys.executable} -m dsv3", words=" ".join(run))
    process = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare failed" in process.stderr or process.returncode == 99:
        pytest.skip(f"no mounts of our own here: {process.stderr}")
    code, *failed, lines = process.stdout.splitlines()[:4]
    assert code == "3", process.stderr
    assert failed == [f'checkpoint_failed", "step": {step}' for step in (8, 12)]
    assert lines == "13", "every step was trained and evaluated"
    without = "training goes on without a checkpoint: "
    said = "/checkpoints/step-8: was not saved: no space left on device"
    assert said in process.stderr.partition(without)[2]
    assert "/checkpoints/step-12: was not saved: no space left on device" in process.stderr
    assert "make room and ask for the same run again" in process.stderr
    assert process.stdout.splitlines()[-1] == "0", process.stderr
    assert "/checkpoints/step-4\n" in process.stderr.partition("going on from ")[2]
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "metrics"), "metrics: no space left on device"),
        (MemoryError(), "memory: there is not enough; lower schedule.micro_batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "lower schedule."),
    ],
)
def test_what_the_machine_lacks_is_no_failure_of_the_run(
    error, said, text, tmp_path, ask, monkeypatch
):
    def fail(*_):
        raise error

    monkeypatch.setattr(loop, "_micro_batches", fail)
    code, err, _ = ask(*words(text, tmp_path))
    assert code == 3
    assert said in err
    [directory] = tmp_path.iterdir()
    assert not (directory / "FAILED").exists()


def test_a_defect_is_written_down_with_its_traceback(text, tmp_path, ask, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(loop, "_micro_batches", fail)
    code, err, _ = ask(*words(text, tmp_path))
    assert code == 70
    [directory] = tmp_path.iterdir()
    where = f"the traceback is at the end of {directory}/logs/rank-0.log"
    assert f"error[internal]: a defect of dsv3: ZeroDivisionError: of ours; {where}\n" in err
    assert json.loads((directory / "FAILED").read_text())["exit_code"] == 70


def test_a_failure_that_cannot_be_written_down_is_told_all_the_same(
    text, tmp_path, ask, monkeypatch
):
    real = files.write_atomically

    def full(path, content, **options):
        if path.name == "FAILED":
            raise OSError(28, "No space left on device", str(path))
        real(path, content, **options)

    monkeypatch.setattr(files, "write_atomically", full)
    code, err, _ = ask(*words(text, tmp_path, schedule__lr=3e38, checkpoint__every_steps=1))
    assert code == 5
    assert "FAILED: no space left on device" in err
    assert "error[numeric]: step 1: master/model." in err


# Signals outside of training ----------------------------------------------------------------------


def test_a_stop_during_preparation_leaves_nothing_half_done(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_text(tmp_path / "text.jsonl", documents=60_000)
    command = [sys.executable, "-m", "dsv3", "train", *words(tmp_path / "text.jsonl", Path("runs"))]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    prepared = tmp_path / "cache/dsv3/prepared"
    deadline = time.monotonic() + HANG_S
    while not list(prepared.glob(".*.tmp/*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 85, err
    assert err.endswith("SIGTERM: nothing is half done; the same command starts again\n")
    assert list(prepared.iterdir()) == []
    assert not (tmp_path / "runs").exists()
