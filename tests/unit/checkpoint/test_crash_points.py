"""kill -9 before every call that changes the disk, one after the other, and errors of each.

The calls are those the kernel sees, by strace; where it is missing or may not trace, those that
Python makes, by a shim. Which of the two it was is printed, and recorded in the test's report.
"""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from dsv3.checkpoint.collective import Solo
from dsv3.checkpoint.durable import clean, read_chunks
from dsv3.checkpoint.reader import Checkpoint, checkpoint_paths, open_checkpoint
from dsv3.errors import CheckpointError
from unit.checkpoint import crash_server

HERE = Path(__file__).parent
# Several names of the kernel for one call: which is used depends on the C library.
CALLS = {
    "write": "write,writev,pwrite64",
    "fsync": "fsync,fdatasync",
    "rename": "rename,renameat,renameat2",
    "unlink": "unlink,unlinkat",
    "rmdir": "rmdir",
    "mkdir": "mkdir,mkdirat",
    "openat": "open,openat,openat2,creat",
    "close": "close",
}
ENOUGH = 200  # more than any action makes of one kind; the enumeration asserts that it ran out
MIXED = -1
Point = Callable[[str, Path, str, int], int]


class Server:
    """The process that forks; one line asks for one act."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, HERE / "crash_server.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def act(
        self, action: str, directory: Path, *, shim: str = "-", inject: str = "", log: str = "none"
    ) -> int:
        """How the act ended; with `inject`, traced from before its first call."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{action} {directory} {shim}\n".encode())
        pid = int(self._line())
        tracer = attach(pid, inject, log) if inject else None
        self._process.stdin.write(b".")
        code = int(self._line())
        if tracer is not None:
            tracer.communicate(timeout=10)
        return code

    def close(self) -> None:
        self._process.communicate(timeout=10)

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode()


def attach(pid: int, inject: str, log: str) -> subprocess.Popen[str]:
    """A tracer of `pid`, which it has in hand when this returns."""
    quiet = ["-e", "signal=none", "-e", f"trace={inject.split(':', maxsplit=1)[0]}"]
    tracer = subprocess.Popen(
        ["strace", "-f", "-p", str(pid), *quiet, "-e", f"inject={inject}"]
        + (["-o", log] if log != "none" else []),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tracer.stderr is not None
    said = tracer.stderr.readline()
    if "attached" not in said:
        tracer.kill()
        raise PermissionError(said)
    return tracer


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.close()


@pytest.fixture(scope="module")
def tool(server, tmp_path_factory) -> str:
    """`strace`, or `shim` where that one cannot be used."""
    if shutil.which("strace") is None:
        return "shim"
    try:
        code = server.act("tidy", tmp_path_factory.mktemp("probe"), inject="fsync:signal=KILL")
    except PermissionError:
        server._process.kill()  # it waits for a byte; the shim needs a new one
        server.__init__()
        return "shim"
    assert code == 0
    return "strace"


@pytest.fixture(scope="module")
def before(server, tmp_path_factory) -> Path:
    """Three good checkpoints, and newer ones that are not."""
    directory = tmp_path_factory.mktemp("before") / "checkpoints"
    for step in (10, 20, 30, 50):
        crash_server.save(directory, step, attempt=1)
    (directory / "step-50" / "manifest.json.sha256").unlink()
    (directory / "step-60").mkdir()
    return directory


@cache
def killer(kind: str, server: Server) -> Point:
    """How an action is killed before its N-th call of a kind."""

    def by_strace(action: str, directory: Path, call: str, number: int) -> int:
        # Counted for each name on its own; one C library uses one of them.
        return server.act(action, directory, inject=f"{CALLS[call]}:signal=KILL:when={number}")

    def by_shim(action: str, directory: Path, call: str, number: int) -> int:
        return server.act(action, directory, shim=f"{call}:{number}")

    return {"strace": by_strace, "shim": by_shim}[kind]


def crash_points(
    kill: Point, action: str, before: Path, home: Path
) -> Iterator[tuple[str, int, Path]]:
    """The directory after a kill at each point, until the action outlives the count."""
    for call in CALLS:
        for number in range(1, ENOUGH):
            directory = home / f"{action}-{call}-{number}"
            shutil.copytree(before, directory)
            code = kill(action, directory, call, number)
            if code == 0:
                break
            assert code == -signal.SIGKILL, f"{call} {number}: ended with {code}"
            yield call, number, directory
            shutil.rmtree(directory)
        else:
            pytest.fail(f"{action} makes more calls of {call} than were tried")


def good(directory: Path) -> dict[int, int]:
    """By step, the attempt whose numbers are everywhere in it; only what verifies whole."""
    found = {}
    for path in checkpoint_paths(directory):
        try:
            checkpoint = open_checkpoint(path, crash_server.IDENTITY)
            checkpoint.verify(Solo())
        except CheckpointError:
            continue
        numbers = numbers_inside(checkpoint)
        found[checkpoint.step] = numbers.pop() if len(numbers) == 1 else MIXED
    return found


def numbers_inside(checkpoint: Checkpoint) -> set[int]:
    data = b"".join(read_chunks(checkpoint.path / "rank-00000.safetensors"))
    data = data[8 + int.from_bytes(data[:8], "little") :]
    assert len(data) == 4 * crash_server.ELEMENTS * len(crash_server.TENSORS)
    numbers = {int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)}
    state = checkpoint.rank_state(0)
    assert state is not None
    return numbers | {checkpoint.state["number"], state["number"], checkpoint.root.attempt}


def tell(record_property, kind: str, points: list[str]) -> None:
    record_property("injected_by", kind)
    record_property("crash_points", len(points))
    print(f"{len(points)} crash points by {kind}: {' '.join(points)}")


OLD = {10: 1, 20: 1, 30: 1}
# What may be there once the next start has cleaned up, and the least before it has.
ALLOWED = {
    "replace": ([OLD, OLD | {30: 2}], 2),  # between two renames the old one is moved aside
    "append": ([OLD, OLD | {40: 2}], 3),
    "retain": ([OLD, {20: 1, 30: 1}], 2),
}
LEAST_POINTS = {"replace": 40, "append": 30, "retain": 10}


@pytest.mark.parametrize("kind", ["kernel", "shim"])
@pytest.mark.parametrize("action", ALLOWED)
def test_a_kill_before_any_call_leaves_the_old_or_the_new(
    server, tool, before, tmp_path, record_property, action, kind
):
    assert good(before) == OLD
    kind = tool if kind == "kernel" else "shim"
    allowed, least = ALLOWED[action]
    points, seen, interrupted = [], [], 0
    for call, number, directory in crash_points(killer(kind, server), action, before, tmp_path):
        where = f"{call}:{number}"
        points.append(where)
        assert len(good(directory)) >= least, where
        interrupted += bool(clean(directory))
        held = good(directory)
        assert held in allowed, where
        seen.append(held)
        assert not [path for path in directory.iterdir() if path.name.startswith(".")], where
        assert {"step-50", "step-60"} <= {path.name for path in directory.iterdir()}
    tell(record_property, kind, points)
    assert {point.split(":")[0] for point in points} >= {"fsync", "rename"}
    assert len(points) >= (LEAST_POINTS[action] if kind == "strace" else 8)
    assert interrupted > 4
    assert all(outcome in seen for outcome in allowed), "some kills came before, some after"


def test_a_kill_while_the_next_start_cleans_up_costs_nothing(
    server, tool, before, tmp_path, record_property
):
    """The old one moved aside by a replacement, a half-written one, one on its way out."""
    tag = "0" * 32
    torn = shutil.copytree(before, tmp_path / "torn")
    (torn / "step-30").rename(torn / f".step-30.{tag}.replaced")
    shutil.copytree(torn / "step-20", torn / f".step-40.{tag}.writing")
    (torn / "step-10").rename(torn / f".step-10.{tag}.removing")
    points = []
    for call, number, directory in crash_points(killer(tool, server), "tidy", torn, tmp_path):
        points.append(f"{call}:{number}")
        assert set(good(directory)) >= {20}
        clean(directory)
        assert good(directory) == {20: 1, 30: 1}, points[-1]
    tell(record_property, tool, points)
    assert len(points) > 10


ERRORS = [("fsync", "EIO"), ("fsync", "ENOSPC"), ("write", "ENOSPC"), ("write", "EDQUOT")]
ERRORS += [("rename", "EIO"), ("mkdir", "EROFS")]


@pytest.mark.parametrize(("call", "error"), ERRORS)
@pytest.mark.parametrize("action", ["replace", "append"])
def test_an_error_of_any_call_costs_only_the_new_checkpoint(
    server, tool, before, tmp_path, record_property, action, call, error
):
    failed = 0
    for number in range(1, ENOUGH):
        directory, log = shutil.copytree(before, tmp_path / str(number)), tmp_path / "log"
        if tool == "strace":
            inject = f"{CALLS[call]}:error={error}:when={number}"
            code = server.act(action, directory, inject=inject, log=str(log))
            fired = "(INJECTED)" in log.read_text()
        else:
            code = server.act(action, directory, shim=f"{call}:{number}:{error}")
            fired = code != 0
        if not fired:
            break
        assert code in (crash_server.FAILED, crash_server.SWALLOWED if tool == "shim" else 0)
        held = good(directory)
        if code != crash_server.FAILED:  # the directory of the checkpoints is there already
            assert call == "mkdir"
            assert 2 in held.values()
        else:
            assert held == OLD
            failed += 1
        assert not [path for path in directory.iterdir() if path.name.startswith(".")]
        if call == "fsync" and tool == "strace":
            assert_never_retried(log.read_text())
        shutil.rmtree(directory)
    else:
        pytest.fail("more calls than were tried")
    record_property("injected_by", tool)
    record_property("failed_calls", failed)
    print(f"{failed} calls failed by {tool}")
    assert failed >= {"fsync": 7, "write": 10, "rename": 1, "mkdir": 1}[call]


def assert_never_retried(log: str) -> None:
    """A second fsync of the same file may report success for pages that were dropped."""
    synced = re.findall(r"f(?:data)?sync\((\d+)\)\s+= (-?\d+)", log)
    [failed] = [at for at, (_, result) in enumerate(synced) if result == "-1"]
    after = synced[failed + 1 :]
    # None at all, but of the directory that names are given back in.
    assert len(after) <= 1, log
