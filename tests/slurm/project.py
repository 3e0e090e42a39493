"""What a user has on the test cluster: a directory with text, a profile, runs, the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from faults.small_run import overrides, write_text
from slurm.cluster import Cluster

STUB = Path(__file__).parent / "stub"
LAYOUT = "parallelism=ep2_dp2"


class Project:
    """A directory to work in; every command is one of `dsv3`, in a process of its own."""

    def __init__(self, cluster: Cluster, path: Path, *, steps: int = 60) -> None:
        self.cluster = cluster
        self.path = path
        (path / "own" / "launchers" / "profiles").mkdir(parents=True)
        text = write_text(path / "text.jsonl")
        self.words = overrides(text, steps=steps)
        self.words += [f"data.cache_dir={path / 'cache'}", "schedule.micro_batch_size=1"]

    def profile(self, name: str = "stub", **keys: Any) -> None:
        """Write a profile of the user's own, for two ranks a node; the ranks are stubs."""
        known: dict[str, Any] = {
            "time": "0:10:00",
            "cpus_per_node": 2,
            "ranks_per_node": 2,
            "partition": "preemptable",
            "environment": {},
        }
        known |= keys
        known["environment"] = {"PYTHONPATH": str(STUB), "STUB_RANKS": "1"} | known["environment"]
        path = self.path / "own" / "launchers" / "profiles" / f"{name}.yaml"
        path.write_text(yaml.safe_dump(known))

    def dsv3(self, *words: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of one command."""
        done = subprocess.run(
            [sys.executable, "-m", "dsv3", *words],
            cwd=self.path,
            env={**os.environ, **self.cluster.env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=900,
        )
        return done.returncode, done.stdout, done.stderr

    def check(self, *words: str) -> str:
        """The output of a command that has to succeed."""
        code, out, err = self.dsv3(*words)
        assert code == 0, f"exit {code}: {err}"
        return out

    def prepare(self) -> None:
        """Prepare the text, once for all commands."""
        self.check("data", "prepare", *(w for w in self.words if w.startswith(("data", "model"))))

    def train(self, *words: str, profile: str = "stub") -> list[dict[str, Any]]:
        """Hand in what these words ask for; the entries of its runs."""
        return list(json.loads(self.check(*self.asked(*words, profile=profile)))["runs"])

    def asked(self, *words: str, profile: str = "stub") -> list[str]:
        """The words of `train`."""
        cluster = ["launcher=slurm", f"launcher.profile={profile}", LAYOUT]
        return ["train", *self.words, *cluster, "--config-dir", "own", "--json", *words]

    def statuses(self) -> dict[str, dict[str, Any]]:
        """Every run by its id, as `dsv3 status` has it."""
        runs = [str(path.parent) for path in self.path.glob("runs/*/config.yaml")]
        return {run["id"]: run for run in json.loads(self.check("status", "--json", *runs))["runs"]}

    def status(self, run: str) -> str:
        """The status of one run."""
        return str(self.statuses()[run]["status"])

    def events(self, run: str) -> list[dict[str, Any]]:
        """The events of a run."""
        path = self.path / "runs" / run / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def attempts(self, run: str) -> list[dict[str, Any]]:
        """What is recorded of each start of a run."""
        path = self.path / "runs" / run / "attempts.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def count(self, run: str, name: str) -> int:
        """How often something happened to a run."""
        return sum(event["event"] == name for event in self.events(run))

    def steps(self, run: str) -> list[int]:
        """The steps in a run's metrics."""
        lines = (self.path / "runs" / run / "metrics.jsonl").read_text().splitlines()
        return [line["step"] for line in map(json.loads, lines) if "kind" not in line]

    def wait_for(self, run: str, name: str, times: int = 1, timeout_s: float = 60) -> None:
        """Wait until something has happened to a run so often."""
        what = f"{times} x {name} in {[event['event'] for event in self.events(run)]}"
        self.cluster.wait(lambda: self.count(run, name) >= times, what, timeout_s)

    def wait_any(self, runs: list[str], name: str, timeout_s: float = 60) -> str:
        """Wait until something has happened to one of these runs; which."""
        what = f"{name} of {runs}"
        self.cluster.wait(lambda: any(self.count(run, name) for run in runs), what, timeout_s)
        return next(run for run in runs if self.count(run, name))

    def wait_done(self, *runs: str, timeout_s: float = 60) -> None:
        """Wait until these runs have a result."""
        paths = [self.path / "runs" / run / "DONE" for run in runs]
        self.cluster.wait(lambda: all(p.exists() for p in paths), f"{runs} to end", timeout_s)

    def output(self, run: str) -> str:
        """What the job of a run printed."""
        place = json.loads((self.path / "runs" / run / "job.json").read_text())
        path = self.path / "runs" / ".jobs" / place["key"] / f"{place['index']}.out"
        return path.read_text() if path.exists() else ""
