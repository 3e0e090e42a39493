"""A launcher passes signals on once, outlives its rank, and says how the rank ended."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dsv3
from dsv3.config.root import RunConfig
from dsv3.errors import CapacityError, Dsv3Error, RankLostError
from dsv3.launch import environment, local
from dsv3.launch.environment import rank_environment, threads_per_rank
from dsv3.launch.local import launch, launch_evaluation, refuse_several_ranks
from dsv3.launch.signals import FORWARDED
from dsv3.machine import Machine
from dsv3.runs.directory import RunDirectory
from dsv3.runs.provenance import Provenance
from dsv3.runs.rank import EvaluationArguments
from dsv3.runs.records import read_lines
from faults.terminal import CTRL_C, in_a_terminal
from patience import HANG_S

# A rank that does no work: says what it sees, then waits to be asked to stop.
RANK = """
import json, os, signal, sys, time
from pathlib import Path
from dsv3.runs.rank import RankArguments
from dsv3.train.signals import StopRequest, stop_with_launcher
run_dir = RankArguments.from_argv(sys.argv[1:]).run_dir
stop_with_launcher()
action = os.environ.get("ACTION", "wait")
if action.startswith("exit"):
    (run_dir / "seen").write_text(json.dumps({"argv": sys.argv[1:], **os.environ}))
    sys.exit(int(action[4:]))
if action.startswith("die"):
    os.kill(os.getpid(), int(action[3:]))
(run_dir / "pid").write_text(str(os.getpid()))
if action == "import":
    time.sleep(0.5)
received = []
with StopRequest() as stop:
    remember = stop._remember
    def count(number, frame):
        received.append(signal.Signals(number).name)
        remember(number, frame)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, count)
    (run_dir / "ready").touch()
    deadline = time.monotonic() + 120  # a failed test must not leave a rank behind
    while not stop.requested and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)  # time for a second copy, if one were sent
    (run_dir / "received").write_text(json.dumps(received))
    sys.exit(stop.as_error(7).exit_code)
"""

LAUNCHER = """
import signal, sys, threading, time
from pathlib import Path
from dsv3.config.root import RunConfig
from dsv3.launch import local
local.RANK_MODULE = "a_rank"
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
if "thread" in sys.argv:
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
config = RunConfig.model_validate_json(Path(sys.argv[1]).read_text())
sys.exit(local.launch(Path(sys.argv[2]), config))
"""


@pytest.fixture
def run(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "a_rank.py").write_text(RANK)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    path = os.pathsep.join([str(tmp_path / "modules"), *sys.path])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setattr(local, "RANK_MODULE", "a_rank")
    record = {"data_fingerprint": "d", "numerics_version": dsv3.NUMERICS_VERSION}
    return RunDirectory.create_or_open(config, overrides=(), provenance=Provenance(record, ""))


def start_launcher(run: RunDirectory, *arguments: str, **options: object) -> subprocess.Popen:
    config = run.path.parents[1] / "config.json"
    command = [sys.executable, "-c", LAUNCHER, str(config), str(run.path), *arguments]
    return subprocess.Popen(command, **options)


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + HANG_S
    while not path.exists() or (path.name != "ready" and not path.read_text()):
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)
    return path.read_text()


@pytest.mark.parametrize("code", [0, 3, 85])
def test_the_exit_code_of_the_rank_is_that_of_the_launch(
    run: RunDirectory, config: RunConfig, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setenv("ACTION", f"exit{code}")
    assert launch(run.path, config, quiet=True) == code


def test_a_rank_sees_its_run_and_an_environment_of_its_own(
    run: RunDirectory, config: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACTION", "exit0")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("KEPT", "yes")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "random.py").write_text("raise SystemExit('imported from the directory')")
    monkeypatch.chdir(tmp_path / "here")
    schedule = config.schedule.model_copy(update={"micro_batch_size": 2})
    other = config.model_copy(update={"schedule": schedule})
    assert launch(run.path, other) == 0
    seen = json.loads((run.path / "seen").read_text())
    assert seen["argv"] == [str(run.path), "--config", run.config_file(other)]
    assert run.config(seen["argv"][2]) == other
    assert seen["OMP_NUM_THREADS"] == str(threads_per_rank(config))
    assert seen["PYTHONFAULTHANDLER"] == "1"
    assert seen["DSV3_LAUNCHER_PID"] == str(os.getpid())
    assert seen["KEPT"] == "yes"
    assert "RANK" not in seen and "TORCHELASTIC_RUN_ID" not in seen


@pytest.mark.parametrize("action", ["exit4", "exit1", "die9"])
def test_how_an_evaluation_ended(
    run: RunDirectory, config: RunConfig, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    monkeypatch.setattr(local, "EVALUATION_MODULE", "a_rank")
    # The stand-in parses the arguments of a rank.
    monkeypatch.setattr(EvaluationArguments, "to_argv", lambda self: [str(self.run_dir)])
    monkeypatch.setenv("ACTION", action)
    report = run.path / "report.json"
    arguments = EvaluationArguments(run.path, "config.yaml", report, None, quiet=True)
    if action == "exit4":
        assert launch_evaluation(arguments, config) == 4
        return
    expected = "evaluation.log; evaluate again" if action == "die9" else "without a named error"
    with pytest.raises(Dsv3Error, match=expected) as raised:
        launch_evaluation(arguments, config)
    assert isinstance(raised.value, RankLostError) == (action == "die9")
    assert not run.events_path.exists(), "nothing has happened to the run"


def test_memory_is_kept_as_asked_and_the_user_wins(config: RunConfig) -> None:
    def environment(**launcher: object) -> dict[str, str]:
        changed = config.launcher.model_copy(update=launcher)
        user = {"MALLOC_TOP_PAD_": "1"}
        return rank_environment(config.model_copy(update={"launcher": changed}), user)

    assert environment(keep_memory=True)["MALLOC_MMAP_THRESHOLD_"] == str(2**30)
    assert environment(keep_memory=True)["MALLOC_TOP_PAD_"] == "1"
    assert environment(keep_memory=True)["GOMP_SPINCOUNT"] == "20000"
    assert "MALLOC_MMAP_THRESHOLD_" not in environment(keep_memory=False)
    assert "MALLOC_MMAP_THRESHOLD_" not in environment(keep_memory=True, device="cuda")
    assert environment(threads_per_rank=5)["OMP_NUM_THREADS"] == "5"


def test_dsv3_is_found_when_it_is_the_current_directory(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(dsv3.__file__).resolve().parents[1]
    monkeypatch.chdir(source)
    assert rank_environment(config, {})["PYTHONPATH"] == str(source)
    assert rank_environment(config, {"PYTHONPATH": "/x"})["PYTHONPATH"] == f"{source}:/x"
    monkeypatch.chdir(source.parent)
    assert "PYTHONPATH" not in rank_environment(config, {})


def test_threads_are_the_cores_shared_out(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "usable_cores", lambda: 6)
    for ranks, threads in ((1, 6), (4, 1), (8, 1)):
        layout = config.parallelism.model_copy(update={"expert_data_parallel_size": ranks})
        assert threads_per_rank(config.model_copy(update={"parallelism": layout})) == threads


def test_crowds_are_refused_by_name(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**layout: int) -> None:
        changed = config.parallelism.model_copy(update=layout)
        refuse_several_ranks(config.model_copy(update={"parallelism": changed}))

    machine = Machine(gpus=(), cores=2, memory_bytes=2**34, gpu_driver=None)
    monkeypatch.setattr(local, "this_machine", lambda: machine)
    refuse()
    refuse(expert_parallel_size=4, expert_data_parallel_size=4)
    refuse(pipeline_parallel_size=2)
    with pytest.raises(CapacityError, match=r"32 ranks .*=8.* 2 cores run 16 ranks at most"):
        refuse(expert_parallel_size=4, expert_data_parallel_size=8)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 85),
        (signal.SIGUSR1, 85),
        (signal.SIGHUP, 85),
        (signal.SIGINT, 130),
    ],
)
def test_a_signal_reaches_the_rank_once_and_the_launcher_waits(
    run: RunDirectory, number: signal.Signals, code: int
) -> None:
    launcher = start_launcher(run, start_new_session=True)  # no terminal
    wait_for(run.path / "ready")
    launcher.send_signal(number)
    assert launcher.wait(HANG_S) == code
    assert json.loads((run.path / "received").read_text()) == [number.name]


def test_a_signal_that_comes_while_the_rank_imports_is_kept_for_it(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTION", "import")
    launcher = start_launcher(run, start_new_session=True)
    wait_for(run.path / "pid")
    launcher.send_signal(signal.SIGUSR1)  # its default action would kill the rank
    assert launcher.wait(HANG_S) == 85


def test_a_signal_that_the_kernel_gives_to_another_thread_is_passed_on(run: RunDirectory) -> None:
    launcher = start_launcher(run, "thread", start_new_session=True)
    wait_for(run.path / "ready")
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(HANG_S) == 85


def test_ctrl_c_on_a_terminal_reaches_the_rank_once(run: RunDirectory) -> None:
    config = run.path.parents[1] / "config.json"
    command = [sys.executable, "-c", LAUNCHER, str(config), str(run.path)]
    with in_a_terminal(command, run.path) as terminal:
        wait_for(run.path / "ready")
        terminal.type(CTRL_C)
        wait_for(run.path / "received")
        while terminal.read():
            pass
    assert terminal.code == 130, terminal.shown.decode()
    assert json.loads((run.path / "received").read_text()) == ["SIGINT"]


def test_the_rank_of_a_killed_launcher_saves(run: RunDirectory) -> None:
    launcher = start_launcher(run, start_new_session=True)
    wait_for(run.path / "ready")
    launcher.kill()
    launcher.wait()
    assert json.loads(wait_for(run.path / "received")) == ["SIGTERM"]


@pytest.mark.parametrize(
    ("name", "hint"), [("SIGKILL", "out of memory"), ("SIGSEGV", "rank-0.log")]
)
def test_a_killed_rank_is_named(
    run: RunDirectory, config: RunConfig, monkeypatch: pytest.MonkeyPatch, name: str, hint: str
) -> None:
    monkeypatch.setenv("ACTION", f"die{int(signal.Signals[name])}")
    with pytest.raises(RankLostError, match=f"killed by {name}.*goes on") as raised:
        launch(run.path, config)
    assert raised.value.exit_code == 8
    assert hint in str(raised.value)
    (event,) = read_lines(run.events_path)
    assert (event["event"], event["signal"]) == ("rank_lost", name)


def test_a_rank_without_a_named_error_is_a_defect(
    run: RunDirectory, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTION", "exit1")
    with pytest.raises(Dsv3Error, match="without a named error") as raised:
        launch(run.path, config)
    assert raised.value.exit_code == 70


def test_handlers_are_put_back(
    run: RunDirectory, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTION", "exit0")
    before = [signal.getsignal(number) for number in (*FORWARDED, signal.SIGCHLD)]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    launch(run.path, config)
    assert [signal.getsignal(number) for number in (*FORWARDED, signal.SIGCHLD)] == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    assert signal.set_wakeup_fd(-1) == -1


def test_an_interpreter_that_cannot_be_started_is_named(
    run: RunDirectory, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(CapacityError, match="/nowhere/python: cannot be started"):
        launch(run.path, config)
