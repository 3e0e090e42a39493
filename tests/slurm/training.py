"""Runs on the test cluster that truly train, and ranks held still until what is to come has come.

A run of a hundred small steps lasts for three seconds on one machine and for thirty on another,
and Slurm looks at time limits twice a minute. So that neither decides what a test sees, ranks are
stopped with SIGSTOP after their first checkpoint; a signal that Slurm sends waits for them.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from slurm.cluster import Cluster
from slurm.processes import with_environment
from slurm.project import Project

STEPS = 60
PATIENCE_S = 900
RECIPE = ["recipe=table5_balance", "seed=1"]
WORDS = [
    "run.digests=true",
    "checkpoint.every_steps=10",
    "evaluation.every_steps=30",
    # What a stopped rank would be taken for otherwise: one that hangs.
    "run.heartbeat_timeout=1000",
]
WORKER = b"dsv3.train.worker"


def project_at(cluster: Cluster, path: Path, like: Project | None = None) -> Project:
    """A directory to work in, with a text of its own, prepared, or that of another project."""
    project = Project(cluster, path, steps=STEPS)
    if like is None:
        project.prepare()
        project.words += WORDS
    else:
        project.words = like.words
    return project


def references(project: Project, *words: str) -> dict[str, bytes]:
    """By run, the digests of runs that nothing happened to, trained without a cluster."""
    there = ["run_root=reference", "sweep_root=reference-sweeps", "launcher.parallel=2"]
    project.check("train", *project.words, *words, *there)
    return digests(project.path / "reference")


def digests(root: Path) -> dict[str, bytes]:
    """By run below `root`, its digests, whose last line is that of the final state."""
    found = {path.parent.name: path.read_bytes() for path in root.glob("*/digests.jsonl")}
    assert found
    assert all(b'"final"' in text.splitlines()[-1] for text in found.values())
    return found


class Held:
    """The ranks of one start of a job, as they stand."""

    def __init__(self, cluster: Cluster, job: str, ranks: int) -> None:
        self._cluster = cluster
        self.raw = cluster.details(job)["JobId"]
        self.pids = self._workers()
        assert len(self.pids) == ranks, f"{len(self.pids)} ranks of job {job}"
        for pid in self.pids:
            os.kill(pid, signal.SIGSTOP)

    def sent(self, number: signal.Signals, *, to_all: bool = False) -> bool:
        """Whether a signal waits for any of them, or for all; they take it once they go on."""
        waits = [_is_pending(pid, number) for pid in self.pids]
        return all(waits) if to_all else any(waits)

    def wait_for_signal(self, number: signal.Signals) -> None:
        """Until every rank has been sent a signal."""
        what = f"{number.name} to every rank of job {self.raw}"
        self._cluster.wait(lambda: self.sent(number, to_all=True), what, PATIENCE_S)

    def release(self) -> None:
        """Let them go on."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _workers(self) -> list[int]:
        job = {"SLURM_CONF": str(self._cluster.conf), "SLURM_JOB_ID": self.raw}
        return [
            pid
            for pid in with_environment(job)
            if WORKER in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]


def _is_pending(pid: int, number: signal.Signals) -> bool:
    """Also of one that is gone: Slurm sends SIGCONT before the signal of a preemption."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return True
    [pending] = [line.split()[1] for line in lines if line.startswith("ShdPnd:")]
    return bool(int(pending, 16) >> (number - 1) & 1)


@contextlib.contextmanager
def held(project: Project, *jobs: tuple[str, str], ranks: int = 4) -> Iterator[list[Held]]:
    """Ranks of these (run, job), each stopped as soon as its run has a checkpoint."""
    found: dict[str, Held] = {}
    try:

        def stop_each() -> bool:
            for run, job in jobs:
                if run not in found and project.count(run, "checkpoint"):
                    found[run] = Held(project.cluster, job, ranks)
            return len(found) == len(jobs)

        project.cluster.wait(stop_each, "a first checkpoint of each run", PATIENCE_S)
        yield [found[run] for run, _ in jobs]
    finally:
        for each in found.values():
            each.release()
