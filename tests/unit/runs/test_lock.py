"""One process holds a run; a dead one holds nothing."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dsv3.errors import CapacityError, LockHeldError
from dsv3.runs import lock as lock_module
from dsv3.runs.lock import RunLock, current_holder, refuse_held

# Takes the lock and says so, holds it until its stdin ends; or says who was faster.
CONTENDER = """
import sys
from pathlib import Path
from dsv3.errors import LockHeldError
from dsv3.runs.lock import RunLock
if "wait" in sys.argv:
    sys.stdin.readline()
try:
    with RunLock(Path(sys.argv[1])):
        print("won", flush=True)
        sys.stdin.read()
except LockHeldError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
"""


def contender(path: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", CONTENDER, str(path), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )


def test_of_many_processes_exactly_one_wins_and_the_others_name_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for _ in range(3):
        racers = [contender(path, "wait") for _ in range(8)]
        for racer in racers:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        said = [racer.stdout.readline() for racer in racers]
        winners = [racer for racer, line in zip(racers, said, strict=True) if line == "won\n"]
        assert len(winners) == 1
        name = f"process {winners[0].pid} on host {socket.gethostname()}"
        assert all(name in line for line in said if line != "won\n")
        for racer in racers:
            racer.communicate()
        assert sorted(racer.returncode for racer in racers) == [0] + [3] * 7


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = contender(path)
    assert holder.stdout.readline() == "won\n"
    with pytest.raises(LockHeldError, match=f"process {holder.pid} on host"):
        RunLock(path).acquire()
    holder.kill()
    holder.communicate()
    assert holder.returncode == -signal.SIGKILL
    assert path.read_text() != ""  # what the dead one wrote is still there, and means nothing
    assert current_holder(path) is None
    with RunLock(path) as lock:
        assert lock.held
        assert current_holder(path).pid == os.getpid()


def test_a_forked_child_does_not_keep_the_lock_of_its_dead_parent(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import os, signal, sys, time; from pathlib import Path\n"
        "from dsv3.runs.lock import RunLock\n"
        f"RunLock(Path({str(path)!r})).acquire()\n"
        "child = os.fork()\n"
        "if child == 0: time.sleep(60)\n"
        "print(child, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )
    child = int(parent.stdout.readline())
    parent.wait()
    try:
        os.kill(child, 0)  # the child lives
        with RunLock(path) as lock:
            assert lock.held
    finally:
        os.kill(child, signal.SIGKILL)


def test_release_frees_it_and_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with RunLock(path) as lock:
        lock.set_attempt(4)
        holder = current_holder(path)
        assert (holder.host, holder.pid, holder.attempt) == (socket.gethostname(), os.getpid(), 4)
        with pytest.raises(LockHeldError):
            refuse_held(path)
    refuse_held(path)
    assert path.read_text() == ""


def test_somebody_asking_who_holds_it_does_not_refuse_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    path.touch()
    asker = os.open(path, os.O_RDONLY)
    lock_module.fcntl.flock(asker, lock_module.fcntl.LOCK_SH)
    # The asker is done while the taker waits to ask again.
    monkeypatch.setattr(lock_module.time, "sleep", lambda _s: os.close(asker))
    with RunLock(path) as lock:
        assert lock.held


def test_a_holder_that_has_not_written_its_name_is_still_a_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with RunLock(path):
        path.write_text("{half a na")
        assert current_holder(path).host == "unknown"
        with pytest.raises(LockHeldError, match="unknown"):
            RunLock(path).acquire()


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(_descriptor: int, _operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock_module.fcntl, "flock", no_locks)
    with pytest.raises(
        CapacityError, match="function not implemented; its file system has no locks"
    ):
        RunLock(tmp_path / "lock").acquire()


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CapacityError):
        RunLock(tmp_path / "lock").acquire()
    assert not (tmp_path / "elsewhere").exists()
