"""kill -9 and SIGSTOP of each rank in turn, and of the launcher: who is named, and who is left."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import dsv3
from dsv3.config.compose import compose
from dsv3.runs.directory import RunDirectory
from dsv3.runs.provenance import Provenance
from dsv3.runs.records import read_lines
from patience import GONE_S, HANG_S, alive, errors_of, wait_until_gone

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

TIMEOUT_S = 2.0
LAUNCHER = """
import sys
from pathlib import Path
from dsv3.errors import Dsv3Error
from dsv3.launch import local
from dsv3.runs.directory import RunDirectory
local.RANK_MODULE = "stub_rank"
run = RunDirectory(Path(sys.argv[1]))
try:
    sys.exit(local.launch(run.path, run.config()))
except Dsv3Error as error:
    print(*error.lines(), sep="\\n", file=sys.stderr)
    sys.exit(error.exit_code)
"""


@contextmanager
def started(home: Path, ranks: int, action: str = ""):
    """A launcher, the directory of its run, and the pids of its ranks, which have made steps."""
    words = [
        "model=moe_nano",
        f"parallelism=dp{ranks}",
        "schedule.micro_batch_size=1",
        "schedule.batch_size_quantum=4",
        f"run.heartbeat_timeout={TIMEOUT_S}",
        f"run_root={home / 'runs'}",
    ]
    record = {"data_fingerprint": "d", "numerics_version": dsv3.NUMERICS_VERSION}
    config = compose(words).config
    run = RunDirectory.create_or_open(config, overrides=(), provenance=Provenance(record, ""))
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(run.path)],
        env={**os.environ, "PYTHONPATH": path, "STUB": action},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    pids = []
    try:
        pids = [wait_for_step(run.path / f"step-{rank}", process) for rank in range(ranks)]
        yield process, run, pids
    finally:
        for pid in [process.pid, *pids]:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def wait_for_step(path: Path, process) -> int:
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline and process.poll() is None:
        words = path.read_text().split() if path.exists() else []
        if len(words) == 2 and int(words[1]) >= 2:
            return int(words[0])
        time.sleep(0.05)
    raise AssertionError(f"no steps: {process.communicate(timeout=HANG_S)[1]}")


@pytest.mark.parametrize(
    ("ranks", "lost", "kind"),
    [
        (2, 0, "SIGKILL"),
        (2, 1, "SIGKILL"),
        (2, 0, "SIGSTOP"),
        (2, 1, "SIGSTOP"),
        (4, 2, "SIGKILL"),
        (4, 3, "SIGSTOP"),
    ],
)
def test_the_lost_rank_is_named_and_nobody_is_left(tmp_path, ranks, lost, kind):
    with started(tmp_path, ranks) as (process, run, pids):
        os.kill(pids[lost], signal.Signals[kind])
        errors = errors_of(process, seconds=TIMEOUT_S + GONE_S)
        assert not any(map(alive, pids))
    assert process.returncode == 8
    first, *more = errors.strip().splitlines()
    assert first.startswith(f"error[rank]: {run.path}: rank {lost} ")
    assert f"rank-{lost}.log" in first and "training, after step" in first
    (event,) = [line for line in read_lines(run.events_path) if line["event"] == "rank_lost"]
    assert event["rank"] == lost
    assert not run.failed_path.exists(), "asked for again, the run goes on"
    peer = (run.logs / f"rank-{(lost + 1) % ranks}.log").read_text()
    assert "by peer" in peer, "the others were given time to say what they met"
    if kind == "SIGKILL":
        assert "killed by SIGKILL" in first and more == []
        assert event["signal"] == "SIGKILL"
    else:
        assert "no sign of life" in first and "limit 2 s" in first
        assert f"rank {lost}: halted by a signal" in more[0]
        assert len(more) == ranks
        assert all("all_reduce (distributed_c10d.py:" in line for line in more[1:])
        assert "train_attempt (stub_rank.py:" in more[1]


@pytest.mark.parametrize("halted", [False, True])
def test_nobody_outlives_a_killed_launcher(tmp_path, halted):
    with started(tmp_path, 2) as (process, _, pids):
        if halted:  # and rank 0 blocked in a reduction that will not end
            os.kill(pids[1], signal.SIGSTOP)
            time.sleep(0.3)
        process.kill()
        wait_until_gone(pids)


def test_a_rank_that_hangs_is_told_from_those_that_wait_for_it(tmp_path):
    with started(tmp_path, 2, "hang") as (process, _, pids):
        errors = errors_of(process, seconds=TIMEOUT_S + GONE_S)
        assert not any(map(alive, pids))
    assert process.returncode == 8
    first, second, third = errors.strip().splitlines()
    assert "rank 0 gave no sign of life" in first
    assert "rank 0: deaf_and_busy (stub_rank.py:" in second
    assert "rank 1 then: all_reduce" in third
