"""500 runs handed in to a scheduler that lies: in the end each has one job, and none has two."""

import contextlib
import os
import re
from collections import Counter

import pytest

from dsv3.config.compose import compose
from dsv3.launch.handing import hand_in_runs
from dsv3.launch.scheduler import SchedulerError
from dsv3.launch.slurm.commands import Slurm
from dsv3.launch.slurm.launcher import SlurmLauncher
from dsv3.launch.slurm.profile import load_profile
from dsv3.launch.submission import JOBS, Submission
from dsv3.launch.submit import Patience
from dsv3.runs.directory import RunDirectory
from dsv3.runs.provenance import Provenance
from slurm.lying_scheduler import EVERY_LIE, Lie, Lies, LyingScheduler

RUNS = COMMANDS = 500
HANGS = {Lie.HANG: 0.03, Lie.ACCEPT_HANG: 0.03}
TRUTH = 16.0  # against ten kinds of lies with 1 each, but for those that hang


class Clock:
    """Time that passes only while somebody sleeps."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def liar(tmp_path, monkeypatch):
    lies = Lies(seed=7, truth=TRUTH, weights=EVERY_LIE | HANGS, forget=0.5, slow_s=0.01)
    scheduler = LyingScheduler(tmp_path / "liar", lies)
    monkeypatch.setenv("PATH", scheduler.path(os.environ["PATH"]))
    yield scheduler.start()
    scheduler.close()


def jobs_of_runs(liar: LyingScheduler, root) -> Counter[str]:
    """How many accepted jobs each run has, whatever became of them."""
    found: Counter[str] = Counter()
    for job in liar.accepted:
        key = re.search("dsv3:([0-9a-f]{12})", job.comment)[1]
        intent = Submission(root / JOBS / key).intent()
        assert len(job.tasks) == len(intent.runs)
        found.update(run.directory.name for run in intent.runs)
    return found


@pytest.mark.slurm  # needs none, but more than a minute
def test_none_is_lost_and_none_is_handed_in_twice(liar, tmp_path, record_property):
    words = ["model=moe_nano", "launcher=slurm", "launcher.profile=test"]
    config = compose([*words, f"run_root={tmp_path / 'runs'}"]).config
    provenance = Provenance({"data_fingerprint": "d", "numerics_version": 2}, "")
    slurm = Slurm(submit_s=2.0, ask_s=2.0)
    launcher = SlurmLauncher("test", load_profile("test"), None, slurm)
    clock = Clock()
    patience = Patience(settle_s=60, sleep=clock.sleep, clock=clock)
    runs = []
    for seed in range(RUNS):
        own = config.model_copy(update={"seed": seed})
        runs.append((RunDirectory.create_or_open(own, overrides=(), provenance=provenance), own))

    each, failed = RUNS // COMMANDS, 0
    for begin in range(0, RUNS, each):
        try:
            hand_in_runs(
                launcher, runs[begin : begin + each], name="x", retry=False, patience=patience
            )
        except SchedulerError:
            failed += 1  # the next day is another one
    lies = Counter(call.lie for call in liar.calls)
    assert max(jobs_of_runs(liar, tmp_path / "runs").values()) == 1, "asked once"

    for _ in range(3):  # asked again for all of it, by impatient people
        with contextlib.suppress(SchedulerError):
            hand_in_runs(launcher, runs, name="x", retry=False, patience=patience)
    liar.honest()
    hand_in_runs(launcher, runs, name="x", retry=False, patience=patience)
    handed = hand_in_runs(launcher, runs, name="x", retry=False, patience=patience)
    assert {each.outcome for each in handed} == {"there already"}
    counts = jobs_of_runs(liar, tmp_path / "runs")
    record_property("lies", {lie.name: number for lie, number in lies.items()})
    print(f"{len(liar.calls)} calls, {lies}, {failed} commands failed")
    assert len(counts) == RUNS, "lost"
    assert set(counts.values()) == {1}, "duplicates"
    assert set(lies) >= set(Lie) - set(HANGS)
    assert failed > 5, "the lies were told"
