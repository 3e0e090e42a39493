"""Lines are whole or not there; a resume cuts what will be done again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsv3.errors import CapacityError, CheckpointError
from dsv3.runs import records
from dsv3.runs.records import EventLog, LineLog, MetricsLog, read_lines


def write_steps(log: MetricsLog, steps: range) -> None:
    for step in steps:
        log.append(
            {
                "step": step,
                "tokens": step * 8,
                "loss": 1 / (step + 2),
                "grad_norm": 0.1 + 0.2,
                "max_violation": {"1": float("inf")},
            }
        )


def write_evaluation(log: MetricsLog, step: int) -> None:
    log.append({"kind": "eval", "step": step, "bpb": 1.25, "domains": {"python": 1.0}})


def test_numbers_come_back_bit_for_bit_and_infinite_ones_as_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, last_step=0) as log:
        write_steps(log, range(1, 4))
        write_evaluation(log, 3)
    lines = list(read_lines(path))
    assert [line["loss"] for line in lines[:3]] == [1 / 3, 1 / 4, 1 / 5]
    assert lines[0]["grad_norm"] == 0.1 + 0.2
    assert lines[0]["max_violation"] == {"1": None}
    assert list(lines[0]) == ["step", "tokens", "loss", "grad_norm", "max_violation"]
    assert (lines[3]["kind"], lines[3]["bpb"], lines[3]["domains"]) == (
        "eval",
        1.25,
        {"python": 1.0},
    )
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()


@pytest.mark.parametrize(
    ("last_step", "steps", "cut"),
    [
        (0, [], 6),
        (2, [1, 2], 4),
        (3, [1, 2, 3, 3], 2),
        (5, [1, 2, 3, 3, 4, 5], 0),
        (9, [1, 2, 3, 3, 4, 5], 0),
    ],
)
def test_a_resume_cuts_exactly_the_lines_beyond_its_checkpoint(
    tmp_path: Path, last_step: int, steps: list[int], cut: int
) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, last_step=0) as log:
        write_steps(log, range(1, 4))
        write_evaluation(log, 3)
        write_steps(log, range(4, 6))
    with MetricsLog(path, last_step=last_step) as log:
        assert log.lines_cut == cut
        assert [line["step"] for line in read_lines(path)] == steps
        write_steps(log, range(last_step + 1, last_step + 2))
    assert [line["step"] for line in read_lines(path)] == [*steps, last_step + 1]


def test_an_evaluation_that_comes_after_its_checkpoint_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, last_step=0) as log:
        for step in (2, 4):
            log.append({"step": step})
            write_evaluation(log, step)
    with MetricsLog(path, last_step=4, evaluated=False) as log:
        assert log.lines_cut == 1
    assert [line.get("kind") for line in read_lines(path)] == [None, "eval", None]


def test_a_torn_last_line_is_left_out_by_readers_and_dropped_by_the_next_writer(
    tmp_path: Path,
) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, last_step=0) as log:
        write_steps(log, range(1, 4))
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for cut in range(1, last):
        path.write_bytes(whole[:-cut])
        assert [line["step"] for line in read_lines(path)] == [1, 2]
    with MetricsLog(path, last_step=9):
        assert path.read_bytes() == whole[:-last]


def test_a_torn_line_longer_than_the_window_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_TAIL_BYTES", 16)
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b'{"b": ' + b"x" * 100)
    LineLog(path).close()
    assert path.read_bytes() == b'{"a": 1}\n'
    path.write_bytes(b"x" * 100)
    LineLog(path).close()
    assert path.read_bytes() == b""


def test_damage_elsewhere_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: .* line 2 is not JSON"):
        list(read_lines(path))
    with pytest.raises(CheckpointError, match="line 2"):
        MetricsLog(path, last_step=5)
    path.write_text("[1]\n")
    with pytest.raises(CheckpointError, match="line 1 is not a JSON object"):
        list(read_lines(path))


def test_a_missing_log_has_no_lines(tmp_path: Path) -> None:
    assert list(read_lines(tmp_path / "metrics.jsonl")) == []


def test_a_full_disk_is_named_and_leaves_whole_lines(tmp_path: Path) -> None:
    # The kernel lets a file grow to the limit in the middle of a line, as a full disk does.
    path = tmp_path / "metrics.jsonl"
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from dsv3.errors import Dsv3Error; from dsv3.runs.records import EventLog\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "log = EventLog(Path(sys.argv[1]))\n"
        "try:\n"
        "    for number in range(100): log.event('event', number=number)\n"
        "except Dsv3Error as error: print(error); sys.exit(error.exit_code)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert finished.returncode == 3, finished.stderr
    assert f"{path}: a line did not fit on the disk; free some space" in finished.stdout
    data = path.read_bytes()
    assert data.endswith(b"\n")
    assert 900 < len(data) <= 1000
    assert [json.loads(line)["number"] for line in data.splitlines()] == list(
        range(data.count(b"\n"))
    )


def test_a_device_without_space_is_named(tmp_path: Path) -> None:
    log = LineLog(tmp_path / "events.jsonl")
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, log._descriptor)
    with pytest.raises(CapacityError, match=r"events\.jsonl: no space left on device"):
        log.append({"a": 1})
    os.close(full)
    log.close()


def test_lines_wait_while_the_disk_is_full(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", last_step=0, patience=3)
    log.append({"step": 1})
    file, full = os.dup(log._descriptor), os.open("/dev/full", os.O_RDWR)
    os.dup2(full, log._descriptor)
    for step in (2, 3, 4):
        log.append({"step": step})
    with pytest.raises(CapacityError, match="no space left"):
        log.sync()
    with pytest.raises(CapacityError, match="no space left"):
        log.append({"step": 5})
    assert [line["step"] for line in read_lines(log.path)] == [1]
    os.dup2(file, log._descriptor)
    log.append({"step": 5})
    assert [line["step"] for line in read_lines(log.path)] == [1, 2, 3, 4, 5]
    log.close()
    os.close(file)
    os.close(full)


def test_what_is_no_lack_of_room_is_told_at_once(tmp_path: Path) -> None:
    log = LineLog(tmp_path / "events.jsonl", patience=3)
    closed = os.dup(log._descriptor)
    os.close(log._descriptor)
    with pytest.raises(CapacityError, match="bad file descriptor"):
        log.append({"a": 1})
    os.dup2(closed, log._descriptor)
    os.close(closed)
    log.close()


def test_events_survive_attempts(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for attempt in (1, 2):
        with EventLog(path) as log:
            log.event("started", attempt=attempt)
            log.sync()
    assert [(line["event"], line["attempt"]) for line in read_lines(path)] == [
        ("started", 1),
        ("started", 2),
    ]


def test_closing_twice_is_fine(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.close()
    log.close()
