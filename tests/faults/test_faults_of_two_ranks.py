"""Two ranks that are killed and signalled at chosen moments, one start after the other; each start
goes on from a whole checkpoint, and the end is that of a run that nothing happened to.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from dsv3.train.evaluation_files import LOAD
from faults.small_run import metrics, overrides, tensors, write_text
from patience import HANG_S, wait_until_gone

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

COMMAND = """
from dsv3.launch import local
local.RANK_MODULE = "faulty_rank"
from dsv3.cli import main
main()
"""
STEPS, EVERY, EVALUATED_EVERY = 60, 4, 10


class Fault(NamedTuple):
    """What happens to one start, and where the next one goes on.

    `saves` is how many of this start's periodic saves count; None: it was asked to stop, and saved.
    """

    name: str
    signals: list[dict[str, object]]
    exit_code: int
    saves: int | None = None
    lost: int | None = None


def at(rank: int, moment: str, *signals: str, to: str = "launcher", nth: int = 1):
    return {
        "rank": rank,
        "moment": moment,
        "signals": [[signal, to] for signal in signals],
        "nth": nth,
    }


def killed(rank: int, moment: str, name: str, *, saves: int = 1) -> Fault:
    """In the second save of a start: the first one is then the newest checkpoint."""
    return Fault(name, [at(rank, moment, "SIGKILL", to="self", nth=2)], 8, saves, rank)


FAULTS = (
    killed(1, r"write rank-00001\.safetensors", "before its tensors"),
    killed(1, r"synced rank-00001\.safetensors", "between its tensors and its manifest"),
    killed(1, r"synced rank-00001\.json", "after its manifest"),
    killed(0, r"rename step-\d+", "before the checkpoint has its name"),
    killed(0, r"rename \.step-.*\.removing", "in retention", saves=2),
    Fault("the launcher, in a save", [at(0, r"write manifest\.json", "SIGKILL", nth=2)], -9, 1),
    Fault("SIGTERM in the import", [at(1, "import deepspeed", "SIGTERM")], 85),
    Fault(
        "three signals in a save",
        [at(1, r"write rank-00001\.json", "SIGUSR1", "SIGTERM", "SIGINT")],
        85,
    ),
    Fault("SIGINT twice in an evaluation", [at(0, rf"rename {LOAD}", "SIGINT", "SIGINT")], 130),
    Fault(
        "SIGTERM in a step, then SIGKILL in the save that answers it",
        [
            at(0, r"wrote metrics\.jsonl", "SIGTERM"),
            at(1, r"write rank-00001\.json", "SIGKILL", to="self"),
        ],
        8,
        0,
        1,
    ),
)


class Ended(NamedTuple):
    """One start: where it began, how far it came, how it ended."""

    exit_code: int
    fired: list[str]
    began: int | None
    lines: list[dict[str, object]]
    errors: str


def train(home: Path, words: list[str], fault: Fault | None) -> Ended:
    """One start of the command; everything it started is gone when this returns."""
    signs = home / "signs"
    known = sum(len(events(run)) for run in home.glob("runs/*"))
    shutil.rmtree(signs, ignore_errors=True)
    signs.mkdir()
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    faults = json.dumps([] if fault is None else fault.signals)
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "train", *words, "--json"],
        env={**os.environ, "PYTHONPATH": path, "FAULT": faults, "FAULT_HOME": str(signs)},
        cwd=home,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    errors = process.communicate(timeout=HANG_S)[1]
    wait_until_gone([int(file.read_text()) for file in signs.glob("pid-*")])
    run = next((home / "runs").iterdir())
    begun = [event["step"] for event in events(run)[known:] if event["event"] == "started"]
    fired = [line for file in signs.glob("fired-*") for line in file.read_text().splitlines()]
    lines = metrics(run) if (run / "metrics.jsonl").exists() else []
    return Ended(process.returncode, fired, begun[-1] if begun else None, lines, errors)


def events(run: Path) -> list[dict[str, object]]:
    path = run / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    text = write_text(tmp_path_factory.mktemp("text") / "text.jsonl")
    values = {
        "parallelism": "ep2",
        "schedule__micro_batch_size": 1,  # two micro batches on each rank
        "balance": "aux_free",
        "mtp": "depth1",
        "evaluation__every_steps": EVALUATED_EVERY,
        "checkpoint__every_steps": EVERY,
        "checkpoint__keep": 2,
        "run_root": "runs",
    }
    return overrides(text, steps=STEPS, **values)


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory) -> Path:
    """The run that nothing happens to."""
    home = tmp_path_factory.mktemp("whole")
    ended = train(home, words, None)
    assert (ended.exit_code, ended.fired) == (0, []), ended.errors
    return next((home / "runs").iterdir())


class Starts:
    """Every fault in turn and a last start without one, each when it is first asked for."""

    def __init__(self, home: Path, words: list[str]) -> None:
        self._home, self._words = home, words
        self._ended: list[Ended] = []

    def __getitem__(self, number: int) -> Ended:
        while len(self._ended) <= number:
            fault = (*FAULTS, None)[len(self._ended)]
            self._ended.append(train(self._home, self._words, fault))
        return self._ended[number]

    def began(self, number: int) -> int:
        """Where this start began; one that was stopped before it knew counts as the one before."""
        known = (self[n].began for n in range(number, -1, -1))
        return next((step for step in known if step is not None), 0)

    @property
    def run(self) -> Path:
        return next((self._home / "runs").iterdir())


@pytest.fixture(scope="module")
def starts(words, tmp_path_factory) -> Starts:
    return Starts(tmp_path_factory.mktemp("faults"), words)


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=lambda n: FAULTS[n].name)
def test_each_fault_fires_and_the_next_start_goes_on_from_a_whole_checkpoint(whole, starts, number):
    fault, this, following = FAULTS[number], starts[number], starts[number + 1]
    assert len(this.fired) == len(fault.signals), "the fault fired"
    assert this.exit_code == fault.exit_code, this.errors
    assert "Traceback" not in this.errors
    if fault.lost is not None:
        assert re.search(rf"rank {fault.lost} was killed by SIGKILL", this.errors)
    expected = metrics(whole)
    assert this.lines == expected[: len(this.lines)]
    assert following.began == goes_on_at(fault, this, starts.began(number))


def goes_on_at(fault: Fault, ended: Ended, began: int) -> int:
    """The step of the newest checkpoint after a fault."""
    if fault.saves is None:
        return max([began, *(line["step"] for line in ended.lines)])
    return began if fault.saves == 0 else began // EVERY * EVERY + fault.saves * EVERY


def test_in_the_end_it_is_the_run_that_nothing_happened_to(whole, starts):
    last_start, run = starts[len(FAULTS)], starts.run
    assert last_start.exit_code == 0, last_start.errors
    assert metrics(run) == metrics(whole)
    last = f"checkpoints/step-{STEPS}"
    assert tensors(run / last) == tensors(whole / last)
    evaluations = sorted(path.relative_to(whole) for path in whole.glob("evaluations/*/*"))
    assert len(evaluations) == 2 * STEPS // EVALUATED_EVERY
    for path in evaluations:
        assert (run / path).read_bytes() == (whole / path).read_bytes()
    assert not [path for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]
