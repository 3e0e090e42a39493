"""Sweeps as they are run, stopped, resumed and looked at; ranks are stubs."""

import json
import os
import re
import signal
import sys

import pytest

from dsv3.runs.directory import Status
from faults.sweep_of_stubs import (
    DSV3,
    HERE,
    Home,
    events,
    require_trained_once,
    running,
    steps,
)
from faults.terminal import CTRL_C, in_a_terminal
from patience import GONE_S, HANG_S, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Home(tmp_path)


def test_a_sweep_is_trained_once_recorded_and_shown(home):
    code, out, err = home.ask("train", "-m", *home.words())
    assert code == 0, err
    assert "[3/6] balance=aux_free seed 1: " in err
    require_trained_once(home, 6)
    written = home.sweep.read_bytes()
    record = json.loads(written)
    assert [(run["arm"], run["seed"]) for run in record["runs"]] == [
        (f"balance={arm}", seed) for arm in ("none", "aux_free", "aux_loss") for seed in (1, 2)
    ]
    assert {run["id"] for run in record["runs"]} == {run.id for run in home.runs}
    code, out, err = home.ask("train", "-m", *home.words())
    assert (code, out.count("done before")) == (0, 6)
    require_trained_once(home, 6)
    assert home.sweep.read_bytes() == written, "written once"
    (sweep,) = home.data("status")["sweeps"]
    assert sweep["id"] == record["id"] and sweep["running"] is None
    assert {run["status"] for run in sweep["runs"]} == {"done"}


def test_a_single_run_has_no_record(home):
    assert home.ask("train", *home.words("seed=1"))[0] == 0
    require_trained_once(home, 1)
    assert not (home.path / "sweeps").exists()
    code, out, _ = home.ask("status", home.runs[0].id[:-2])
    assert code == 0 and "20/100" in out


def test_the_others_are_trained_when_one_fails_and_it_is_retried_when_asked(home):
    home.environment["STUB_FAIL"] = "aux_free"
    sweep = ["train", "-m", *home.words("balance=aux_free,none", "seed=1,2")]
    code, out, err = home.ask(*sweep)
    assert code == 7
    assert err.count("error[numeric]: step 3: a loss that is not a number") == 2
    assert [run.status() for run in home.runs].count(Status.DONE) == 2
    del home.environment["STUB_FAIL"]
    code, out, err = home.ask(*sweep, "launcher.parallel=2")
    assert code == 7 and out.count("failed before") == 2
    assert err.count("error[numeric]: step 3") == 2
    (shown,) = home.data("status")["sweeps"]
    failed = [run for run in shown["runs"] if run["status"] == "failed"]
    assert [run["failure"] for run in failed] == ["step 3: a loss that is not a number"] * 2
    code, _, _ = home.ask("resume", home.sweep.stem)
    assert code == 7
    code, _, err = home.ask("resume", home.sweep.stem, "--retry")
    assert code == 0, err
    require_trained_once(home, 4)


@pytest.mark.parametrize(
    ("name", "code", "parallel"),
    [("SIGINT", 130, 1), ("SIGTERM", 85, 2), ("SIGUSR1", 85, 1)],
)
def test_a_stop_saves_starts_nothing_more_and_the_next_command_goes_on(home, name, code, parallel):
    home.environment["STUB_STEP_S"] = "0.05"
    hold = home.hold()  # or one could be done before the other has begun
    words = home.words("seed=1,2,3", f"launcher.parallel={parallel}")
    with running(home, "train", "-m", *words) as process:
        wait_until(lambda: len([r for r in home.runs if steps(r)]) == parallel, "steps are made")
        process.send_signal(signal.Signals[name])
        _, err = process.communicate(timeout=HANG_S)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert len([run for run in home.runs if events(run, "started")]) == parallel
    stopped = [run for run in home.runs if steps(run)]
    saved = [steps(run)[-1] for run in stopped]
    for run, step in zip(stopped, saved, strict=True):
        assert run.status() is Status.STOPPED
        assert (run.checkpoints / f"step-{step}").is_dir(), "saved where it was"
    hold.unlink()
    code, _, err = home.ask("resume", home.sweep.stem)
    assert code == 0, err
    require_trained_once(home, 3)
    assert [events(run, "started")[1]["step"] for run in stopped] == saved


def test_two_sweeps_that_share_runs_train_them_once(home):
    home.environment["STUB_STEP_S"] = "0.05"
    first = home.words("balance=none,aux_free", "seed=1,2")
    second = home.words("balance=none,aux_loss", "seed=1,2")
    with running(home, "train", "-m", *first) as one:
        wait_until(lambda: any(map(steps, home.runs)), "the first run makes steps")
        with running(home, "train", "-m", *second) as other:
            _, err = other.communicate(timeout=HANG_S)
            assert other.returncode == 0, err
        _, err_one = one.communicate(timeout=HANG_S)
        assert one.returncode == 0, err_one
    require_trained_once(home, 6)
    assert all(len(events(run, "started")) == 1 for run in home.runs), "nobody waited for nothing"
    records = [
        set(re.findall(r'"id": "(moe_nano[^"]*)"', path.read_text()))
        for path in home.path.glob("sweeps/*.json")
    ]
    assert len(records) == 2 and len(records[0] & records[1]) == 2, "two are shared"
    # The second did not idle: it began with a run that the first was not training.
    assert next(line for line in err.splitlines() if line[:1] == "[")[:5] != "[1/4]"


def test_the_same_sweep_twice_waits_for_the_first(home):
    hold = home.hold()
    words = home.words("seed=1,2")
    with running(home, "train", "-m", *words) as one:
        wait_until(lambda: any(map(steps, home.runs)), "steps are made")
        with running(home, "train", "-m", *words) as other:
            waits = f"waiting for process {one.pid} on host "
            assert any(waits in line for line in other.stderr), "ended without a word of it"
            hold.unlink()
            _, err = other.communicate(timeout=HANG_S)
        assert other.returncode == 0, err
        one.communicate(timeout=HANG_S)
    require_trained_once(home, 2)


def test_status_and_cancel_of_a_running_sweep(home):
    hold = home.hold()
    with running(home, "train", "-m", *home.words("seed=1,2,3")) as process:
        wait_until(lambda: any(len(steps(run)) == 19 for run in home.runs), "the first is held")
        (sweep,) = home.data("status", home.sweep.stem)["sweeps"]
        assert sweep["running"]["pid"] == process.pid
        by_seed = {run["seed"]: run for run in sweep["runs"]}
        assert [by_seed[seed]["status"] for seed in (1, 2, 3)] == ["running", "new", "new"]
        first = by_seed[1]
        assert (first["step"], first["loss"]) == (19, pytest.approx(5.0 - 1.9))
        assert first["seconds_left"] == pytest.approx(5 * 128 / 1e5, rel=0.1)
        (told,) = home.data("cancel", home.sweep.stem)["cancelled"]
        assert told["asked"] and told["pid"] == process.pid
        _, err = process.communicate(timeout=HANG_S)
        assert process.returncode == 85, err
    hold.unlink()
    (sweep,) = home.data("status")["sweeps"]
    assert sorted(run["status"] for run in sweep["runs"]) == ["new", "new", "stopped"]
    code, _, err = home.ask("resume", home.sweep.stem)
    assert code == 0, err
    require_trained_once(home, 3)


def test_a_run_that_is_cancelled_does_not_stop_the_others(home):
    hold = home.hold()
    with running(home, "train", "-m", *home.words("seed=1,2")) as process:
        wait_until(lambda: any(len(steps(run)) == 19 for run in home.runs), "the first is held")
        (held,) = (run for run in home.runs if steps(run))
        (told,) = home.data("cancel", held.id)["cancelled"]
        assert told["asked"] and told["pid"] != process.pid
        wait_until(lambda: all(map(steps, home.runs)), "the other run makes steps")
        hold.unlink()
        process.communicate(timeout=HANG_S)
        assert process.returncode == 85
    assert [run.status() for run in home.runs].count(Status.DONE) == 1
    assert held.status() is Status.STOPPED


def test_nobody_is_left_when_the_process_of_the_sweep_alone_is_killed(home):
    hold = home.hold()  # or one could be done before the other has begun
    words = home.words("seed=1,2", "launcher.parallel=2")
    with running(home, "train", "-m", *words) as process:
        wait_until(lambda: sum(len(steps(run)) > 2 for run in home.runs) == 2, "steps are made")
        os.kill(process.pid, signal.SIGKILL)
        wait_until(
            lambda: all(run.status() is not Status.RUNNING for run in home.runs),
            "they end",
            seconds=GONE_S,
        )
    for run in home.runs:
        assert (run.checkpoints / f"step-{steps(run)[-1]}").is_dir(), "saved on the way"
    hold.unlink()
    assert home.ask("resume", home.sweep.stem)[0] == 0
    require_trained_once(home, 2)
    assert all(len(events(run, "started")) == 2 for run in home.runs)


def test_a_run_whose_directory_is_gone_is_composed_again(home):
    assert home.ask("train", "-m", *home.words("seed=1,2"))[0] == 0
    lost = home.runs[0].path
    lost.rename(home.path / "aside")
    code, _, err = home.ask("resume", home.sweep.stem)
    assert code == 0, err
    require_trained_once(home, 2)
    assert lost.exists()
    assert len(events(home.runs[0], "started")) == 1


def test_ctrl_c_in_a_terminal(home):
    """The terminal sends it to the sweep, the launchers and the ranks; two runs share a table."""
    home.hold()  # or one could be done before the other has begun
    table = b"0 of 3 done, 1 new, 2 running"
    words = home.words("seed=1,2,3", "launcher.parallel=2")
    path = os.pathsep.join([str(HERE), str(HERE.parent), *sys.path])
    environment = {**os.environ, **home.environment, "PYTHONPATH": path, "TERM": "xterm"}
    command, sent = [sys.executable, "-c", DSV3, "train", "-m", *words], False
    with in_a_terminal(command, home.path, environment) as terminal:
        while terminal.read():
            begun = sum(len(steps(run)) > 2 for run in home.runs) == 2
            if not sent and begun and table in terminal.shown:
                terminal.type(CTRL_C)
                sent = True
    shown = terminal.shown
    assert terminal.code == 130, shown.decode()
    assert b"Traceback" not in shown
    assert b"asked to stop: 2 runs save and end" in shown
    stopped = [run for run in home.runs if steps(run)]
    assert len(stopped) == 2
    for run in stopped:
        assert (run.checkpoints / f"step-{steps(run)[-1]}").is_dir()
        assert run.status() is Status.STOPPED
