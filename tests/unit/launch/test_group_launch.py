"""Several ranks: what each is given, how they end together, and which of them is told of."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import dsv3
from dsv3.config.root import RunConfig
from dsv3.errors import CapacityError, RankLostError
from dsv3.launch import group, local
from dsv3.launch.environment import threads_per_rank
from dsv3.launch.process import start_member
from dsv3.runs.directory import RunDirectory
from dsv3.runs.provenance import Provenance
from dsv3.runs.records import read_lines
from patience import HANG_S

# Real ranks, but for what they train: the action of each is in ACTIONS, by rank.
MEMBER = """
import json, os, signal, sys, time, types
from dsv3.errors import CapacityError, NumericHealthError
from dsv3.train import worker

def train_attempt(run, arguments, stop, lock, heartbeat):
    rank = int(os.environ["RANK"])
    action = json.loads(os.environ["ACTIONS"])[rank]
    (run.path / f"seen-{rank}").write_text(json.dumps({"pid": os.getpid(), **os.environ}))
    print(f"printed by {rank}", flush=True)
    heartbeat.beat()
    match action:
        case "wait":
            received = []
            remember = stop._remember
            def count(number, frame):
                received.append(signal.Signals(number).name)
                remember(number, frame)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
                signal.signal(number, count)
            (run.path / f"ready-{rank}").touch()
            deadline = time.monotonic() + 60
            while not stop.requested and time.monotonic() < deadline:
                time.sleep(0.01)
                heartbeat.beat()
            time.sleep(0.2)  # time for a second copy, if one were sent
            (run.path / f"received-{rank}").write_text(json.dumps(received))
            raise stop.as_error(7)
        case "long save":
            with heartbeat.phase("saving", 30):
                time.sleep(1.5)
        case "capacity":
            raise CapacityError("no room")
        case "numeric":
            raise NumericHealthError("not a number")
        case "defect":
            try:
                raise ZeroDivisionError("on purpose")
            finally:  # the others notice before it gets to say so
                (run.path / "gone").touch()
                log = run.logs / "rank-0.log"
                while not log.exists() or "by peer" not in log.read_text():
                    time.sleep(0.01)
                time.sleep(0.3)
        case "peer":
            while not (run.path / "gone").exists():
                time.sleep(0.01)
            raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
        case "unnamed":
            os._exit(1)
        case "abort":
            os.abort()
        case "deaf":
            limit_s = float(os.environ.get("LIMIT_S", "60"))
            with heartbeat.phase("stuck", limit_s):
                time.sleep(60)

if __name__ == "__main__":
    stub = types.ModuleType("dsv3.train.attempt")
    stub.train_attempt = train_attempt
    sys.modules[stub.__name__] = stub
    sys.exit(worker.main())
"""

LAUNCHER = """
import sys
from pathlib import Path
from dsv3.launch import local
from dsv3.runs.directory import RunDirectory
local.RANK_MODULE = "a_member"
run = RunDirectory(Path(sys.argv[1]))
sys.exit(local.launch(run.path, run.config()))
"""


@pytest.fixture
def pair(config: RunConfig) -> RunConfig:
    """The configuration of two ranks that may be silent for half a minute."""
    layout = config.parallelism.model_copy(update={"expert_data_parallel_size": 2})
    return config.model_copy(update={"parallelism": layout})


@pytest.fixture
def run(pair: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "a_member.py").write_text(MEMBER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "modules"), *sys.path]))
    monkeypatch.setattr(local, "RANK_MODULE", "a_member")
    record = {"data_fingerprint": "d", "numerics_version": dsv3.NUMERICS_VERSION}
    return RunDirectory.create_or_open(pair, overrides=(), provenance=Provenance(record, ""))


@pytest.fixture
def acting(monkeypatch: pytest.MonkeyPatch):
    def act(*actions: str) -> None:
        monkeypatch.setenv("ACTIONS", json.dumps(actions))

    return act


def seen(run: RunDirectory, rank: int) -> dict[str, str]:
    return json.loads((run.path / f"seen-{rank}").read_text())


def nobody_is_left(run: RunDirectory) -> bool:
    pids = [json.loads(path.read_text())["pid"] for path in run.path.glob("seen-*")]
    return not any(psutil.pid_exists(pid) for pid in pids)


def test_each_rank_has_its_place_and_its_log(run, pair, acting, capfd) -> None:
    acting("end", "end")
    assert local.launch(run.path, pair) == 0
    for rank in (0, 1):
        found = seen(run, rank)
        place = [found[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")]
        assert place == [str(rank), str(rank), "2", "2"]
        assert found["OMP_NUM_THREADS"] == str(threads_per_rank(pair))
        assert (found["MASTER_ADDR"], found["GLOO_SOCKET_IFNAME"]) == ("127.0.0.1", "lo")
        assert found["MASTER_PORT"] == seen(run, 0)["MASTER_PORT"]
    assert seen(run, 1)["DSV3_STORE_SOCKET"] == "-1"
    assert capfd.readouterr().out == "printed by 0\n"
    assert (run.logs / "rank-1.log").read_text() == "printed by 1\n"


def test_the_port_listens_before_a_rank_runs(run, pair, monkeypatch) -> None:
    ports = []

    def start(_command, environment, *, descriptors, output):
        address = (environment["MASTER_ADDR"], int(environment["MASTER_PORT"]))
        socket.create_connection(address).close()
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("", address[1]))
        ports.append(address[1])
        return subprocess.Popen(["true"])

    monkeypatch.setattr(group, "start_member", start)
    assert local.launch(run.path, pair) == 0
    assert len(set(ports)) == 1


def test_who_asks_too_early_for_a_stack_kills_nobody(tmp_path) -> None:
    before = signal.getsignal(signal.SIGUSR2)
    code = "import signal, sys; sys.exit(signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN)"
    with (tmp_path / "log").open("wb") as output:
        command = [sys.executable, "-c", code]
        process = start_member(command, os.environ, descriptors=(), output=output)
    assert process.wait(HANG_S) == 1
    assert signal.getsignal(signal.SIGUSR2) is before


def test_ranks_are_killed_if_not_all_can_be_started(run, pair, acting, monkeypatch) -> None:
    acting("wait", "wait")
    start = group.start_member

    def only_the_first(command, environment, **options):
        if environment["RANK"] == "1":
            while not (run.path / "ready-0").exists():
                time.sleep(0.02)
            raise CapacityError("no process left")
        return start(command, environment, **options)

    monkeypatch.setattr(group, "start_member", only_the_first)
    with pytest.raises(CapacityError, match="no process left"):
        local.launch(run.path, pair)
    assert nobody_is_left(run)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 85), (signal.SIGUSR1, 85), (signal.SIGINT, 130)]
)
def test_a_signal_reaches_every_rank_once(run, acting, number, code) -> None:
    acting("wait", "wait")
    command = [sys.executable, "-c", LAUNCHER, str(run.path)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    while not all((run.path / f"ready-{rank}").exists() for rank in (0, 1)):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    errors = process.communicate(timeout=HANG_S)[1]
    assert process.returncode == code
    for rank in (0, 1):
        assert json.loads((run.path / f"received-{rank}").read_text()) == [number.name]
    (line,) = errors.splitlines()
    assert "saved at step 7" in line
    assert not run.failed_path.exists()


def test_what_all_ranks_say_is_said_once(run, pair, acting, capfd) -> None:
    acting("numeric", "numeric")
    assert local.launch(run.path, pair) == 5
    assert capfd.readouterr().err.count("not a number") == 1
    assert run.failure()["exit_code"] == 5
    assert [line["event"] for line in read_lines(run.events_path)] == ["failed"]


def test_the_cause_is_told_and_not_its_consequence(run, pair, acting, capfd) -> None:
    acting("peer", "defect")
    assert local.launch(run.path, pair) == 70
    said = capfd.readouterr().err
    assert "ZeroDivisionError: on purpose" in said
    assert f"rank 1: was the first to say so; its log: {run.logs / 'rank-1.log'}" in said
    assert "lost touch" not in said
    assert (run.failure()["exit_code"], run.failure()["rank"]) == (70, 1)
    assert "Connection closed by peer" in (run.logs / "rank-0.log").read_text()


def test_who_is_killed_for_another_is_not_blamed(run, pair, acting, capfd, monkeypatch) -> None:
    acting("deaf", "capacity")
    monkeypatch.setattr(group, "GRACE_S", 0.3)
    monkeypatch.setattr(group, "STARTING_GRACE_S", 0.1)
    assert local.launch(run.path, pair) == 3
    assert "no room" in capfd.readouterr().err
    assert nobody_is_left(run)


def test_a_failure_that_may_pass_leaves_the_run_as_it_was(run, pair, acting, capfd) -> None:
    acting("wait", "capacity")
    assert local.launch(run.path, pair) == 3
    assert "no room" in capfd.readouterr().err
    assert not run.failed_path.exists()
    assert nobody_is_left(run)


@pytest.mark.parametrize(
    ("action", "told"),
    [
        ("unnamed", "rank 1 ended without a named error while training"),
        ("abort", "rank 1 was killed by SIGABRT while training"),
    ],
)
def test_a_rank_that_says_nothing_is_lost(run, pair, acting, action, told) -> None:
    acting("wait", action)
    with pytest.raises(RankLostError, match=f"{told}.*rank-1.log.*goes on"):
        local.launch(run.path, pair)
    (event,) = read_lines(run.events_path)
    assert (event["event"], event["rank"], event["phase"]) == ("rank_lost", 1, "training")
    assert not run.failed_path.exists()
    assert nobody_is_left(run)


def test_a_silent_rank_is_shown_where_it_hangs(run, pair, acting, monkeypatch) -> None:
    acting("wait", "deaf")
    monkeypatch.setenv("LIMIT_S", "0.5")
    limits = pair.run.model_copy(update={"heartbeat_timeout": 2.0})
    with pytest.raises(RankLostError) as raised:
        local.launch(run.path, pair.model_copy(update={"run": limits}))
    lost, stack, peer = map(str, raised.value.problems)
    assert "rank 1 gave no sign of life for" in lost and "while stuck (limit 0.5 s)" in lost
    assert stack.startswith("rank 1: train_attempt (a_member.py:")
    assert f"stacks: {run.logs / 'rank-1.stack'}" in stack
    assert peer.startswith("rank 0 then: train_attempt (a_member.py:")
    assert nobody_is_left(run)


def test_a_phase_has_a_limit_of_its_own(run, pair, acting) -> None:
    acting("long save", "long save")
    limits = pair.run.model_copy(update={"heartbeat_timeout": 0.5})
    assert local.launch(run.path, pair.model_copy(update={"run": limits})) == 0
