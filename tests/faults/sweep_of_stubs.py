"""Sweeps whose ranks are stubs: the processes are real, a run of 20 steps takes half a second."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from dsv3.runs.directory import RunDirectory
from dsv3.runs.records import read_lines
from faults.small_run import overrides, write_text
from faults.stub_sweep_rank import STEPS
from patience import GONE_S, HANG_S, wait_until

HERE = Path(__file__).parent
ARMS = ("balance=none,aux_free,aux_loss", "seed=1,2")
# `dsv3`, but that ranks are stubs, and that nothing is asked of git.
DSV3 = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
from dsv3.launch import local, one
one.MODULE, local.RANK_MODULE = "stub_launch", "stub_sweep_rank"
from dsv3.cli import main
main()
"""


class Home:
    """A directory in which sweeps are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = write_text(path / "text.jsonl")
        self.environment: dict[str, str] = {}

    def words(self, *more: object) -> list[str]:
        """A sweep of six small runs, or of what `more` says."""
        return [*overrides(self.text, steps=100), *map(str, more or ARMS)]

    def hold(self) -> Path:
        """A file that keeps every run from its last step while it is there."""
        path = self.path / "hold"
        path.touch()
        self.environment["STUB_HOLD"] = str(path)
        return path

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start `dsv3` with words, in a process group of its own."""
        path = os.pathsep.join([str(HERE), str(HERE.parent), *sys.path])
        return subprocess.Popen(
            [sys.executable, "-c", DSV3, *words],
            cwd=self.path,
            env={**os.environ, "PYTHONPATH": path, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ask(self, *words: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of `dsv3` with words."""
        process = self.start(*words)
        out, err = process.communicate(timeout=HANG_S)
        assert "Traceback" not in err, err
        return process.returncode, out, err

    def data(self, *words: str) -> dict:
        """What `dsv3 ... --json` prints."""
        code, out, err = self.ask(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    @property
    def runs(self) -> list[RunDirectory]:
        """Every run directory."""
        return [RunDirectory(path) for path in sorted(self.path.glob("runs/[!.]*"))]

    @property
    def sweep(self) -> Path:
        """The record of the only sweep."""
        (record,) = self.path.glob("sweeps/*.json")
        return record

    def run(self, name: str) -> RunDirectory:
        """The run whose id begins so."""
        (found,) = (run for run in self.runs if run.id.startswith(name))
        return found


@contextmanager
def running(home: Home, *words: str):
    """`dsv3` with words; killed with all that belongs to it at the end."""
    process = home.start(*words)
    try:
        yield process
    finally:
        kill_all(home, process)
        process.communicate()


def processes(home: Home) -> list[psutil.Process]:
    """Launchers and ranks that are alive: they have a path in `home` among their arguments."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        named = any(f"{home.path}/runs" in word for word in process.info["cmdline"] or ())
        if named and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def kill_all(home: Home, process: subprocess.Popen[str]) -> None:
    """SIGKILL the process of the sweep and everything it has started, in that order."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for each in processes(home):
        with suppress(psutil.NoSuchProcess):
            each.kill()
    wait_until(lambda: not processes(home), "all are gone", seconds=GONE_S)


def steps(run: RunDirectory) -> list[int]:
    """The steps in metrics.jsonl."""
    return [line["step"] for line in read_lines(run.metrics_path)]


def events(run: RunDirectory, name: str) -> list[dict]:
    """What happened to a run."""
    return [line for line in read_lines(run.events_path) if line["event"] == name]


def require_trained_once(home: Home, runs: int) -> None:
    """Every run is there, has each step once, and was brought to its end by one attempt."""
    assert len(home.runs) == runs
    for run in home.runs:
        assert run.done_path.exists(), run.path
        assert steps(run) == list(range(1, STEPS + 1)), run.path
        assert len(events(run, "finished")) == 1, run.path
        begun = [line["step"] for line in events(run, "started")]
        assert begun == sorted(begun), f"{run.path} went back: {begun}"
    assert not processes(home)
    assert not list(home.path.glob("runs/.*")), "left behind"
