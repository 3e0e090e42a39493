"""A mirror may be slow, hang, fail or be missing: the loop neither waits nor ends."""

import http.server
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from wandb.proto import wandb_internal_pb2

from dsv3.config.root import RunConfig
from dsv3.config.tracking import TrackingConfig
from dsv3.runs.directory import RunDirectory
from dsv3.runs.lock import RunLock
from dsv3.runs.provenance import collect
from dsv3.train import wandb_mirror
from dsv3.train.mirror import BACKENDS, serve
from dsv3.train.mirrored import MirroredRun
from dsv3.train.tracking import Mirror, NoMirror, filed_as, numbers, open_mirror
from dsv3.train.wandb_mirror import wandb_mode

SENTINEL = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def mirrored(tmp_path: Path) -> MirroredRun:
    return MirroredRun(
        backend="tensorboard",
        id="nano-s1-0123456789",
        directory=str(tmp_path),
        project="dsv3",
        group="table5-0123456789",
        name="aux_free seed 1",
        tags=["table5", "aux_free", "seed 1"],
        mode="auto",
        first_step=1,
        config={"seed": 1},
    )


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


class Recorder:
    """A backend that keeps what it is given; fails on the steps it is told to."""

    def __init__(self, run: MirroredRun, fails_at: tuple[int, ...] = ()) -> None:
        self.run = run
        self.fails_at = fails_at
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def log(self, step: int, values: dict[str, float]) -> None:
        if step in self.fails_at:
            raise ConnectionError("the server said 503\nand a long page")
        self.lines.append((step, values))

    def close(self) -> None:
        self.closed = True


def as_lines(run: MirroredRun, steps: range) -> list[str]:
    lines = [{"step": step, "values": {"loss": 1.0 / step}} for step in steps]
    return [json.dumps(vars(run)), *map(json.dumps, lines)]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


# --- the process ---------------------------------------------------------------------------


def test_the_registry_is_the_schema() -> None:
    choices = get_args(TrackingConfig.model_fields["backend"].annotation)
    assert {"none", *BACKENDS} == set(choices)


def test_a_backend_gets_the_run_and_every_line(mirrored: MirroredRun) -> None:
    made: list[Recorder] = []

    def backend(run: MirroredRun) -> Recorder:
        made.append(Recorder(run))
        return made[0]

    report = serve(as_lines(mirrored, range(1, 4)), {"tensorboard": backend})
    assert (report.written, report.failed, report.warning) == (3, 0, None)
    assert made[0].run == mirrored
    assert made[0].lines == [(1, {"loss": 1.0}), (2, {"loss": 0.5}), (3, {"loss": 1 / 3})]
    assert made[0].closed


def test_a_failing_line_is_counted_and_the_next_ones_are_written(mirrored: MirroredRun) -> None:
    backends = {"tensorboard": lambda run: Recorder(run, fails_at=(2, 3))}
    report = serve(as_lines(mirrored, range(1, 6)), backends)
    assert (report.written, report.failed) == (3, 2)
    assert report.warning == "tracking lost a line: ConnectionError: the server said 503"


def test_a_backend_that_does_not_come_up_is_reported(mirrored: MirroredRun) -> None:
    def broken(_run: MirroredRun) -> Recorder:
        raise PermissionError("401")

    report = serve(as_lines(mirrored, range(1, 3)), {"tensorboard": broken})
    assert (report.written, report.warning) == (0, "tracking is off: PermissionError: 401")


# --- the rank's side -------------------------------------------------------------------------


def opened(run: MirroredRun, warnings: list[str], code: str, **options: int) -> Mirror:
    return Mirror(run, every_steps=1, warn=warnings.append, command=python(code), **options)


ECHO = (
    "import json, sys\n"
    "lines = [json.loads(line) for line in sys.stdin]\n"
    "open('{out}', 'w').write(json.dumps(lines))\n"
    "print(json.dumps(dict(written=len(lines) - 1, failed=0, warning=None)))\n"
)


def test_lines_arrive_as_numbers_on_the_mirrored_steps(
    mirrored: MirroredRun, tmp_path: Path
) -> None:
    warnings: list[str] = []
    code = ECHO.format(out=tmp_path / "got")
    mirror = Mirror(mirrored, every_steps=2, warn=warnings.append, command=python(code))
    for step in range(1, 5):
        mirror.log(step, {"step": step, "loss": 2.0, "name": "x", "layers": {"1": {"dead": 3}}})
    mirror.log(5, {"kind": "eval", "step": 5, "loss": 1.0, "domains": {"c": 0.5}})
    report = mirror.close()
    assert report.complete
    assert (report.written, report.lost, warnings) == (3, 0, [])
    run, *lines = json.loads((tmp_path / "got").read_text())
    assert run == vars(mirrored)
    assert lines == [
        {"step": 2, "values": {"loss": 2.0, "layers/1/dead": 3}},
        {"step": 4, "values": {"loss": 2.0, "layers/1/dead": 3}},
        {"step": 5, "values": {"eval/loss": 1.0, "eval/domains/c": 0.5}},
    ]


def test_a_hanging_mirror_drops_counts_and_is_ended(mirrored: MirroredRun, tmp_path: Path) -> None:
    warnings: list[str] = []
    code = f"import os, time; open('{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(600)"
    mirror = opened(mirrored, warnings, code, capacity=8)
    line = {"loss": 1.0, "more": {str(n): 1.0 for n in range(1000)}}
    for step in range(1, 201):  # far more than queue and pipe hold
        mirror.log(step, line)
    while not (tmp_path / "pid").exists():
        time.sleep(0.01)
    report = mirror.close(timeout_s=0.2)
    assert (report.written, report.lost, report.finished) == (0, 200, False)
    assert warnings == ["tracking did not finish within 0.2 s and was left behind"]
    assert mirror._process.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("code", "warning"),
    [
        ("raise SystemExit(1)", "tracking is off"),
        (
            'print(\'{"written": 0, "failed": 0, "warning": "tracking is off: 401"}\')',
            "tracking is off: 401",
        ),
        ("import os; os.kill(os.getpid(), 9)", "tracking is off"),
    ],
)
def test_a_mirror_that_ends_early_is_one_warning_and_nothing_else(
    mirrored: MirroredRun, code: str, warning: str
) -> None:
    warnings: list[str] = []
    mirror = opened(mirrored, warnings, code)
    for step in range(1, 4):
        mirror.log(step, {"loss": 1.0})
    report = mirror.close()
    assert (report.written, report.lost, report.complete) == (0, 3, False)
    assert len(warnings) == 1
    assert warnings[0].startswith(warning)
    mirror.close()
    assert len(warnings) == 1


def test_the_warning_comes_from_the_thread_that_logs(mirrored: MirroredRun) -> None:
    threads: list[int] = []
    mirror = Mirror(
        mirrored,
        every_steps=1,
        warn=lambda _text: threads.append(threading.get_ident()),
        command=["/nowhere/python"],
    )
    mirror._thread.join(10)
    mirror.log(1, {"loss": 1.0})
    assert threads == [threading.get_ident()]


def test_a_mirror_that_cannot_be_started_is_a_warning(mirrored: MirroredRun) -> None:
    warnings: list[str] = []
    mirror = Mirror(mirrored, every_steps=1, warn=warnings.append, command=["/nowhere/python"])
    mirror.log(1, {"loss": 1.0})
    assert not mirror.close().complete
    assert warnings[0].startswith("tracking is off: FileNotFoundError")


def test_no_tracking_starts_nothing(config: RunConfig, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    mirror = open_mirror(config, run=run, first_step=1, warn=pytest.fail)
    assert isinstance(mirror, NoMirror)
    mirror.log(1, {"loss": 1.0})
    assert mirror.close().complete
    assert list(tmp_path.iterdir()) == []


def test_numbers_are_numbers() -> None:
    line = {"step": 3, "loss": 1.5, "ok": True, "none": None, "name": "x", "a": {"b": {"c": 2}}}
    assert dict(numbers(line)) == {"loss": 1.5, "a/b/c": 2}


# --- the real backends ------------------------------------------------------------------------


def with_tracking(config: RunConfig, backend: str, **values: object) -> RunConfig:
    tracking = config.tracking.model_copy(update={"backend": backend, **values})
    return config.model_copy(update={"tracking": tracking})


def mirror_of(config: RunConfig, directory: Path, *, first_step: int = 1) -> Mirror:
    """The real process of a mirror; a warning fails the test."""
    run = RunDirectory(directory)
    mirror = open_mirror(config, run=run, first_step=first_step, warn=pytest.fail)
    assert isinstance(mirror, Mirror)
    return mirror


def log_steps(mirror: Mirror, steps: range, *, factor: float = 1.0) -> None:
    for step in steps:
        mirror.log(step, {"step": step, "loss": factor * step})


@pytest.mark.usefixtures("importable")
def test_tensorboard_writes_what_tensorboard_reads_and_hides_redone_steps(
    config: RunConfig, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracked = with_tracking(config, "tensorboard", group="g", name="aux_free seed 1")
    mirror = mirror_of(tracked, tmp_path)
    log_steps(mirror, range(1, 5))
    assert mirror.close(60).complete
    mirror = mirror_of(tracked, tmp_path, first_step=3)
    log_steps(mirror, range(3, 7), factor=10.0)
    mirror.roll_back(4)
    log_steps(mirror, range(5, 6), factor=100.0)
    assert mirror.close(60).complete
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 30.0),
        (4, 40.0),
        (5, 500.0),
    ]
    names = events.Tensors("run")[-1]
    (text,) = names.tensor_proto.string_val
    assert "name: aux_free seed 1" in text.decode()
    assert "group: g" in text.decode()


@pytest.mark.usefixtures("importable")
def test_tensorboard_imports_neither_torch_nor_tensorflow(
    mirrored: MirroredRun, tmp_path: Path
) -> None:
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('tensorflow was imported')")
    code = (
        "import json, sys; from dsv3.train.mirror import *\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        f"run = MirroredRun(**json.loads({json.dumps(vars(mirrored))!r}))\n"
        "backend = TensorBoardBackend(run); backend.log(1, {'loss': 1.0}); backend.close()\n"
        "assert 'torch' not in sys.modules\n"
        "from tensorboard.compat import tf; print(tf.__version__)\n"
    )
    printed = subprocess.run(python(code), capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "stub"


def wandb_records(run_file: Path) -> list[wandb_internal_pb2.Record]:
    """Records of W&B's file: blocks of 32 KiB of (crc, length, type, data), as LevelDB's log."""
    data, place, found, part = run_file.read_bytes(), 7, [], b""
    while place + 7 <= len(data):
        left_in_block = 32768 - place % 32768
        if left_in_block < 7:
            place += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            found.append(wandb_internal_pb2.Record.FromString(part))
            part = b""
    return found


def rows_of(records: list[wandb_internal_pb2.Record]) -> list[dict[str, float]]:
    history = [record.history for record in records if record.HasField("history")]
    rows = []
    for line in history:
        values = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in line.item}
        rows.append({"row": line.step.num, **values})
    return rows


@pytest.mark.usefixtures("importable")
def test_wandb_offline_is_one_run_over_attempts_and_roll_backs(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, directory = tmp_path / "home", tmp_path / "nano-s1-0123456789"
    home.mkdir()
    directory.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", SENTINEL)
    monkeypatch.setenv("WANDB_API_KEY", SENTINEL)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    # What is set for another run does not reach this one.
    for name in ("WANDB_RUN_ID", "WANDB_NAME", "WANDB_RUN_GROUP", "WANDB_TAGS"):
        monkeypatch.setenv(name, "another")
    long = "balance=aux_free " * 10
    names = {"group": "table5-01", "name": "aux_free seed 1", "tags": ("table5", long, "table5")}
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        tracked = with_tracking(config, "wandb", mode="offline", **names)
        mirror = mirror_of(tracked, directory)
        log_steps(mirror, range(1, 5))
        assert mirror.close(60).complete
        mirror = mirror_of(tracked, directory, first_step=3)
        log_steps(mirror, range(3, 5), factor=10.0)
        mirror.roll_back(3)
        log_steps(mirror, range(4, 6), factor=100.0)
        report = mirror.close(60)
        assert (report.written, report.complete) == (4, True)
        with pytest.raises(TimeoutError):
            server.accept()  # nobody came
    files = sorted((directory / "wandb").glob("offline-run-*/run-nano-s1-0123456789.wandb"))
    assert len(files) == 2
    records = [wandb_records(file) for file in files]
    for attempt in records:
        run = next(record.run for record in attempt if record.HasField("run"))
        assert (run.run_id, run.run_group) == ("nano-s1-0123456789", "table5-01")
        assert run.display_name == "aux_free seed 1"
        assert run.tags[0] == "table5"
        assert len(run.tags) == 2
        assert len(run.tags[1]) == 64
    rows = [row for attempt in records for row in rows_of(attempt)]
    numbers_of_rows = [row["row"] for row in rows]
    assert numbers_of_rows == sorted(set(numbers_of_rows)), "W&B drops rows that go back"
    told = {row["step"]: row["loss"] for row in sorted(rows, key=lambda row: row["part"])}
    assert told == {1: 1.0, 2: 2.0, 3: 30.0, 4: 400.0, 5: 500.0}
    assert len(rows) == 8
    written = b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())
    assert SENTINEL.encode() not in written
    assert b"moe_nano" in written, "the configuration is there"
    assert list(home.iterdir()) == []


def test_a_run_stays_where_it_was_filed_first(config: RunConfig) -> None:
    def attempt(config: RunConfig) -> RunDirectory:
        provenance = collect(config, argv=[], data_fingerprint="d", threads_per_rank=1)
        run = RunDirectory.create_or_open(config, overrides=[], provenance=provenance)
        with RunLock(run.lock_path) as lock:
            run.begin_attempt(lock, config, provenance)
        return run

    first = with_tracking(config, "wandb", group="sweep-1", name="a seed 1")
    second = with_tracking(config, "wandb", group="sweep-2", name="b seed 1")
    run = attempt(config)
    assert filed_as(run, first.tracking) == first.tracking, "without a mirror nothing is filed"
    attempt(first)
    attempt(second)
    assert filed_as(run, second.tracking) == first.tracking
    run.config_path.write_text("damaged: [")
    assert filed_as(run, second.tracking) == second.tracking


def test_only_the_key_of_the_dashboard_reaches_its_process(
    mirrored: MirroredRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SENTINEL)
    monkeypatch.setenv("HF_TOKEN", SENTINEL)
    seen = {}
    for backend in ("wandb", "tensorboard"):
        out = tmp_path / backend
        code = f"import os, json; open('{out}', 'w').write(json.dumps(dict(os.environ)))"
        Mirror(
            replace(mirrored, backend=backend),
            every_steps=1,
            warn=lambda _text: None,
            command=python(code),
        ).close()
        seen[backend] = {n for n, value in json.loads(out.read_text()).items() if value == SENTINEL}
    assert seen == {"wandb": {"WANDB_API_KEY"}, "tensorboard": set()}


def test_without_names_a_run_goes_by_its_id_and_model(config: RunConfig, tmp_path: Path) -> None:
    mirror = mirror_of(with_tracking(config, "wandb"), tmp_path / "run-1")
    own = mirror._run
    mirror._abandon()
    assert (own.id, own.name, own.group) == ("run-1", "run-1", "moe_nano")
    assert tuple(own.tags) == ("moe_nano", config.balance.strategy)


def test_wandb_is_online_only_with_a_key_and_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(wandb_mirror, "_answers", lambda url: url != "https://down.example.org")
    key = {"WANDB_API_KEY": SENTINEL}
    assert wandb_mode({}) == "offline"
    assert wandb_mode({}, "online") == "offline"
    assert wandb_mode(key) == "online"
    assert wandb_mode(key, "offline") == "offline"
    assert wandb_mode(key | {"WANDB_MODE": "offline"}, "online") == "online"
    assert wandb_mode(key | {"WANDB_MODE": "online"}, "offline") == "offline"
    down = {"WANDB_API_KEY": SENTINEL, "WANDB_BASE_URL": "https://down.example.org"}
    assert wandb_mode(down) == "offline"
    assert wandb_mode({"WANDB_API_KEY": SENTINEL, "WANDB_MODE": "disabled"}) is None
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {SENTINEL}\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert wandb_mode({}) == "online"
    assert wandb_mode({"WANDB_BASE_URL": "https://wandb.example.org"}) == "offline"
    (tmp_path / ".netrc").write_text("machine machine machine")
    assert wandb_mode({}) == "offline"


def test_a_server_answers_with_anything_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(wandb_mirror, "_PROBE_S", 0.2)
    handler = http.server.BaseHTTPRequestHandler  # has no GET: answers 501
    handler.log_message = lambda *_arguments: None
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert wandb_mirror._answers(f"http://127.0.0.1:{server.server_port}")
    with socket.create_server(("127.0.0.1", 0)) as black_hole:
        port = black_hole.getsockname()[1]
        assert not wandb_mirror._answers(f"http://127.0.0.1:{port}")
    assert not wandb_mirror._answers(f"http://127.0.0.1:{port}")
    assert not wandb_mirror._answers("file:///etc/passwd")
