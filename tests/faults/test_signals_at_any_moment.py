"""Stop signals at every moment of a rank, from a terminal too, and readers that go away.

Moments are chosen by what the rank is about to do, and it is the rank that sends the signal: so it
is certain to arrive there. Most ranks run in this process; two of them meet them in
test_faults_of_two_ranks.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dsv3 import cli
from dsv3.commands import calling
from faults.small_run import metrics, overrides, tensors
from faults.terminal import CTRL_C, in_a_terminal
from patience import HANG_S

STEPS, EVERY, EVALUATED_EVERY = 12, 4, 6
# What a rank is about to call, and for the how many-th time; where it is saved then. Every file of
# a checkpoint is written with one call, five for each.
MOMENTS = {
    "loading": ("dsv3.train.checkpointing.restore_random_state", 1, EVERY),
    "reading data": ("dsv3.train.loop._micro_batches", 3, EVERY + 3),
    "a step": ("dsv3.train.loop.take_load", 1, EVERY + 1),
    "an evaluation": ("dsv3.train.loop.evaluate", 1, EVALUATED_EVERY),
    "writing an evaluation": ("dsv3.train.loop.save_evaluation", 1, EVALUATED_EVERY),
    "the last evaluation": ("dsv3.train.loop.evaluate", 2, STEPS),
}
SAVING = "dsv3.checkpoint.writer.write_file"
MOMENTS |= {f"file {n} of a save": (SAVING, n, 2 * EVERY) for n in (1, 3, 5)}
SIGNALS = {
    ("SIGTERM",): 85,
    ("SIGUSR1", "SIGUSR1"): 85,
    ("SIGINT", "SIGINT", "SIGTERM"): 130,
}
# Each moment with one, by turns, and one moment with all.
CASES = [*zip(MOMENTS, itertools.cycle(SIGNALS), strict=False)]
CASES += [("a step", names) for names in SIGNALS if ("a step", names) not in CASES]


pytestmark = pytest.mark.usefixtures("ranks_here")


def words(text: Path, root: Path, **values) -> list[str]:
    cut = {"checkpoint__every_steps": EVERY, "evaluation__every_steps": EVALUATED_EVERY}
    return overrides(text, steps=STEPS, run_root=root, **cut, **values)


@pytest.fixture(scope="module")
def whole(text, ranks_here, tmp_path_factory):
    """The run that nothing happens to."""
    root = tmp_path_factory.mktemp("whole")
    assert cli.run(["train", *words(text, root)]) == 0
    return next(root.iterdir())


@pytest.fixture(scope="module")
def begun(text, whole, tmp_path_factory):
    """A directory whose run has its first checkpoint."""
    root = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        send_before(patch, "dsv3.train.loop._micro_batches", EVERY + 1, ("SIGTERM",))
        assert cli.run(["train", *words(text, root)]) == 85
    [run] = root.iterdir()
    (run / "checkpoints" / f"step-{EVERY + 1}").rename(root / "aside")
    return run


def send_before(patch, name: str, call: int, names: tuple[str, ...]) -> list[str]:
    """Have the call-th call of a function send signals first; the list tells which were sent."""
    module, _, function = name.rpartition(".")
    real, sent, calls = getattr(sys.modules[module], function), [], []

    def sending(*arguments, **keywords):
        calls.append(1)
        if len(calls) == call:
            for signal_name in names:
                os.kill(os.getpid(), signal.Signals[signal_name])
                sent.append(signal_name)
        return real(*arguments, **keywords)

    patch.setattr(name, sending)
    return sent


@pytest.fixture
def unfinished(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "runs" / begun.name)


@pytest.mark.parametrize(("moment", "names"), CASES, ids=str)
def test_all_steps_so_far_are_saved_and_the_next_start_goes_on_exactly(
    moment, names, unfinished, whole, text, capsys, monkeypatch
):
    name, call, saved_at = MOMENTS[moment]
    run = words(text, unfinished.parent)
    with monkeypatch.context() as patch:
        sent = send_before(patch, name, call, names)
        code = cli.run(["train", *run])
    assert tuple(sent) == names, "the signals were sent"
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if moment == "the last evaluation":  # nothing is left to stop
        assert code == 0
    else:
        assert code == SIGNALS[names]
        if name == SAVING:  # training may go on meanwhile
            assert metrics(unfinished)[-1]["step"] >= saved_at
            saved_at = metrics(unfinished)[-1]["step"]
        assert f"{names[0]}: saved at step {saved_at}; ask for the same run again" in said
        assert metrics(unfinished)[-1]["step"] == saved_at
        assert (unfinished / "checkpoints" / f"step-{saved_at}" / "manifest.json.sha256").exists()
        assert cli.run(["train", *run]) == 0
        said = capsys.readouterr().err
        assert f"going on from {unfinished}/checkpoints/step-{saved_at}\n" in said
    assert metrics(unfinished) == metrics(whole)
    last = f"checkpoints/step-{STEPS}"
    assert tensors(unfinished / last) == tensors(whole / last)


# A command of its own -----------------------------------------------------------------------------

# Stops itself as soon as the preparation of the text has begun.
PREPARING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
def hook(event, arguments):
    if event == "os.mkdir" and ".tmp" in str(arguments[0]) and "prepared" in str(arguments[0]):
        print("sent", flush=True)
        for name in os.environ["NAMES"].split("-"):
            os.kill(os.getpid(), signal.Signals[name])
sys.addaudithook(hook)
from dsv3.cli import main
main()
"""
DSV3 = [sys.executable, "-m", "dsv3"]


@pytest.mark.parametrize(
    ("names", "code"), [("SIGTERM", 85), ("SIGUSR1", 85), ("SIGINT", 130), ("SIGTERM-SIGTERM", 85)]
)
def test_a_stop_while_the_text_is_prepared(text, tmp_path, monkeypatch, names, code):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NAMES", names)
    command = [sys.executable, "-c", PREPARING, "train", *words(text, Path("runs"))]
    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert ended.stdout == "sent\n", ended.stderr
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert list((tmp_path / "cache/dsv3/prepared").iterdir()) == []
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_twice_in_a_terminal(text, tmp_path):
    """The terminal sends it to the command and to its rank, both times."""
    run = words(text, Path("runs"), schedule__total_tokens=10**9)
    lines, sent = 0, 0
    with in_a_terminal([*DSV3, "train", *run], tmp_path) as terminal:
        while terminal.read():
            for path in (tmp_path / "runs").glob("*/metrics.jsonl"):
                lines = path.read_bytes().count(b"\n")
            if sent < 2 and lines > 3:
                terminal.type(CTRL_C)
                sent += 1
    shown = terminal.shown
    assert terminal.code == 130, shown.decode()
    assert sent == 2
    assert b"^C" in shown
    assert b"Traceback" not in shown
    [directory] = (tmp_path / "runs").iterdir()
    done = metrics(directory)[-1]["step"]
    assert f"SIGINT: saved at step {done}; ask for the same run again".encode() in shown
    assert (directory / "checkpoints" / f"step-{done}" / "manifest.json.sha256").exists()


@pytest.mark.parametrize(
    "verb",
    [
        ["train", "--json"],
        ["train"],
        ["train", "--dry-run"],
        ["config", "show"],
        ["config", "schedule"],
    ],
    ids=" ".join,
)
def test_a_reader_that_goes_away_is_no_error(whole, text, verb):
    """stdout is a pipe that nobody reads any more, as after `| head -1`."""
    run = words(text, whole.parent)
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [*DSV3, *verb, *run], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert "Traceback" not in ended.stderr
    assert "BrokenPipe" not in ended.stderr
    assert ended.returncode == calling.BROKEN_PIPE, ended.stderr
    assert json.loads((whole / "DONE").read_text())["steps"] == STEPS
