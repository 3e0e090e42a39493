"""kill -9 of the command before each call that changes anything, from frozen runs to the job id."""

import os
import re
import shutil
from collections import Counter

import pytest

from dsv3.config.compose import compose
from dsv3.launch.submission import JOBS, Submission
from dsv3.runs.directory import RunDirectory
from dsv3.runs.provenance import Provenance
from slurm.crashes import Command, Crashes
from slurm.lying_scheduler import LyingScheduler

RUNS = 2


@pytest.fixture(scope="module")
def liar(tmp_path_factory):
    scheduler = LyingScheduler(tmp_path_factory.mktemp("liar"))
    yield scheduler.start()
    scheduler.close()


@pytest.fixture(scope="module")
def crashes():
    started = Crashes("slurm.handing_command")
    yield started
    started.close()


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """Run directories as they are when the scheduler is to be asked."""
    root = tmp_path_factory.mktemp("frozen") / "runs"
    words = ["model=moe_nano", "launcher=slurm", "launcher.profile=test", f"run_root={root}"]
    provenance = Provenance({"data_fingerprint": "d", "numerics_version": 2}, "")
    config = compose(words).config
    for seed in range(RUNS):
        own = config.model_copy(update={"seed": seed})
        RunDirectory.create_or_open(own, overrides=(), provenance=provenance)
    return root


@pytest.mark.parametrize("alone", [False, True])
def test_the_next_command_finds_what_was_taken_and_hands_in_the_rest(
    crashes, liar, frozen, tmp_path, alone, record_property
):
    """`alone`: only the command is killed; else what it started dies with it."""
    environment = {"PATH": liar.path(os.environ["PATH"])}

    def command(number):
        home = tmp_path / str(number)
        shutil.copytree(frozen, home / "runs")
        runs = [str(path.parent) for path in sorted((home / "runs").glob("*/config.yaml"))]
        return Command(["hand", *runs], home, main="slurm.handing_command:main", env=environment)

    def jobs(number):
        root = tmp_path / str(number) / "runs"
        found = Counter()
        for job in liar.accepted:
            path = root / JOBS / re.search("dsv3:([0-9a-f]{12})", job.comment)[1]
            if path.exists():
                found.update(run.directory.name for run in Submission(path).intent().runs)
        return found

    points, taken = [], 0
    mine = str(tmp_path)
    for outcome in crashes.each(
        command, alone=alone, counts=lambda call: mine in call.path or "bin/" in call.path
    ):
        number = int(re.search(rf"{mine}/(-?\d+)", outcome.at.path + f"{mine}/-2")[1])
        points.append(f"{outcome.at.name}:{outcome.at.path.rpartition('/')[2]}")
        if number == -2:  # a call that names no file of its own
            number = max(int(path.name) for path in tmp_path.iterdir())
        taken += bool(jobs(number))
        runs = [
            str(p.parent) for p in sorted((tmp_path / str(number) / "runs").glob("*/config.yaml"))
        ]
        home = tmp_path / str(number)
        again = crashes.run(
            Command(["hand", *runs], home, main="slurm.handing_command:main", env=environment)
        )
        assert again.code == 0, (points[-1], again.stderr)
        found = jobs(number)
        assert len(found) == RUNS, f"lost by {points[-1]}"
        assert set(found.values()) == {1}, f"twice by {points[-1]}"
        assert re.fullmatch(r"((handed in|there already) \d+_\d\n){2}", again.stdout)
        if "handed in" in again.stdout:
            assert not list((home / "runs" / JOBS).glob(".*")), f"half made by {points[-1]}"
    record_property("points", points)
    print(f"{len(points)} points, {taken} of them after the job was taken: {points}")
    assert len(points) > 20
    assert 0 < taken < len(points), "some kills came before the job was taken, some after"
