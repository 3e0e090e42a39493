"""What becomes of launchers that end in any way; they are shells here."""

import json
import subprocess
import threading
import time

import pytest

import dsv3
from dsv3.errors import CapacityError, Problem
from dsv3.runs.directory import RunDirectory
from dsv3.runs.lock import RunLock
from dsv3.runs.provenance import Provenance
from dsv3.sweep import runner
from dsv3.sweep.arms import Arm
from dsv3.sweep.runner import Job, Runner
from dsv3.sweep.slots import Slots

RESULT = '{"loss": 1}'


class Watcher:
    refresh_s = None

    def __init__(self):
        self.seen = []

    def __getattr__(self, name):
        return lambda *details: self.seen.append((name, *details))

    def names(self):
        return [each[0] for each in self.seen if each[0] != "look"]


@pytest.fixture
def jobs(config):
    made = []
    for number in (1, 2, 3):
        arm = Arm("arm", config.model_copy(update={"seed": number}), ())
        record = {"data_fingerprint": "d", "numerics_version": dsv3.NUMERICS_VERSION}
        provenance = Provenance(record, "")
        run = RunDirectory.create_or_open(arm.config, overrides=(), provenance=provenance)
        made.append(Job(number, 3, arm, run))
    return made


@pytest.fixture
def launchers(monkeypatch):
    """Shell commands by the run's seed, the next one for each start; gives what was started."""
    monkeypatch.setattr(runner, "POLL_S", 0.02)
    commands, started = {}, []

    def start_one(run, config_file, *, quiet, environment, output):
        seed = run.config(config_file).seed
        started.append((seed, environment.get("SLOT"), output is not None))
        (run.logs / "dir").write_text("")
        command = commands[seed].pop(0)
        if isinstance(command, Exception):
            raise command
        return subprocess.Popen(
            ["bash", "-c", command], cwd=run.path, stdout=output, stderr=output, env=environment
        )

    monkeypatch.setattr(runner, "start_one", start_one)
    return commands, started


def run(jobs, watcher=None, *, slots=1, retry=False):
    room = Slots(tuple({"SLOT": str(number)} for number in range(slots)))
    made = Runner(jobs, room, watcher or Watcher(), retry=retry, quiet=True)
    return {o.job.number: (o.exit_code, o.trained) for o in made.run()}


DONE = f"echo '{RESULT}' > DONE"


def test_an_ending_of_any_kind_is_a_code_and_the_others_go_on(jobs, launchers):
    commands, started = launchers
    commands |= {1: ["kill -9 $$"], 2: ["exit 1"], 3: [DONE]}
    assert run(jobs) == {1: (8, True), 2: (70, True), 3: (0, True)}
    assert [each[0] for each in started] == [1, 2, 3]
    assert run(jobs[2:]) == {3: (0, False)}
    commands |= {1: ["exit 0"], 2: [f"{DONE}; exit 8"]}
    assert run(jobs[:2]) == {1: (70, True), 2: (0, True)}, "what is done is done"


def test_a_run_that_cannot_be_started_is_an_arm_that_failed(jobs, launchers):
    commands, _ = launchers
    commands |= {1: [CapacityError(Problem("x", "full"))], 2: [DONE], 3: ["exit 85"]}
    watcher = Watcher()
    assert run(jobs, watcher) == {1: (3, False), 2: (0, True), 3: (85, True)}
    assert watcher.names().count("cannot") == 1


def test_failed_runs_wait_for_a_retry(jobs, launchers):
    commands, started = launchers
    jobs[0].directory.failed_path.write_text(
        json.dumps({"exit_code": 5, "problems": [], "id": "x"})
    )
    commands |= {1: [DONE], 2: [DONE], 3: [DONE]}
    assert run(jobs) == {1: (5, False), 2: (0, True), 3: (0, True)}
    assert len(started) == 2
    assert run(jobs, retry=True)[1] == (0, True)


def test_slots_are_taken_and_given_back(jobs, launchers):
    commands, started = launchers
    commands |= {1: [f"sleep 0.5; {DONE}"], 2: [f"echo said; sleep 0.05; {DONE}"], 3: [DONE]}
    watcher = Watcher()
    run(jobs, watcher, slots=2)
    assert started == [(1, "0", True), (2, "1", True), (3, "1", True)]
    (ended,) = (each for each in watcher.seen if each[0] == "ended" and each[1].job.number == 2)
    assert ended[2].read_text()[ended[3] :] == "said\n"


def test_a_run_that_others_train_comes_last_and_is_not_trained_again(jobs, launchers):
    commands, started = launchers
    commands |= {2: [DONE], 3: [DONE]}
    lock = RunLock(jobs[0].directory.lock_path)
    lock.acquire()
    watcher = Watcher()

    def other():
        while "waits" not in watcher.names():
            time.sleep(0.01)
        jobs[0].directory.done_path.write_text(RESULT)
        lock.release()

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    assert run(jobs, watcher) == {1: (0, False), 2: (0, True), 3: (0, True)}
    thread.join()
    assert [each[0] for each in started] == [2, 3]
    names = watcher.names()
    assert names.index("waits") > len(names) - 1 - names[::-1].index("ended"), "others came first"


def test_who_was_overtaken_asks_again(jobs, launchers):
    """The other process took the lock after this one had looked, and saved and ended since."""
    commands, started = launchers
    commands |= {1: ["exit 3", DONE]}
    assert run(jobs[:1]) == {1: (0, True)}
    assert len(started) == 2


def test_who_cannot_start_for_another_reason_does_not_ask_for_ever(jobs, launchers):
    commands, started = launchers
    commands |= {1: ["exit 3"] * 20, 2: ["echo '{}' >> attempts.jsonl; exit 3"] * 20}
    assert run(jobs[:2]) == {1: (3, True), 2: (3, True)}
    assert [each[0] for each in started].count(1) == runner._MOST_OVERTAKEN
    assert [each[0] for each in started].count(2) == 1, "it began, and there was no memory, say"
