import json
from pathlib import Path

import pytest

import dsv3
from dsv3.runs.directory import RunDirectory
from dsv3.runs.lock import RunLock
from dsv3.runs.provenance import Provenance
from dsv3.sweep import progress
from dsv3.sweep.progress import Gauge


@pytest.fixture
def run(config) -> RunDirectory:
    record = {"data_fingerprint": "d", "numerics_version": dsv3.NUMERICS_VERSION}
    return RunDirectory.create_or_open(config, overrides=(), provenance=Provenance(record, ""))


def step(number: int, **more: object) -> dict[str, object]:
    tokens = number * 1000
    return {
        "step": number,
        "tokens": tokens,
        "loss": 9 - number / 100,
        "tokens_per_second": 500.0,
        **more,
    }


def write(run: RunDirectory, lines: list[dict[str, object]], *, torn: str = "") -> None:
    run.metrics_path.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + torn)


def test_each_status(run: RunDirectory, tmp_path: Path) -> None:
    missing = Gauge(RunDirectory(tmp_path / "none"), arm="a", seed=4).read()
    assert (missing.status, missing.seed, missing.arm, missing.step) == ("missing", 4, "a", 0)
    gauge = Gauge(run)
    assert (gauge.read().status, gauge.read().loss) == ("new", None)
    write(run, [step(1), step(2)])
    read = gauge.read()
    assert (read.status, read.step, read.loss, read.seed) == ("stopped", 2, 8.98, 1)
    assert read.seconds_left is None, "it is not running"
    with RunLock(run.lock_path):
        read = gauge.read()
    assert read.status == "running"
    total = run.config().schedule.total_tokens
    assert read.seconds_left == pytest.approx((total - 2000) / 500)
    assert read.total_steps == run.config().schedule.num_steps
    run.failed_path.write_text(json.dumps({"id": "x", "problems": [{"rule": "why"}]}))
    assert (gauge.read().status, gauge.read().failure) == ("failed", "why")
    run.done_path.write_text("{}")
    assert gauge.read().status == "done"
    json.dumps(gauge.read().record())


@pytest.mark.parametrize("text", ["{", "[]", "x: y"])
def test_a_damaged_run_is_a_row_as_well(run: RunDirectory, text: str) -> None:
    run.config_path.write_text(text)
    read = Gauge(run, arm="a", seed=3).read()
    assert read.status == "damaged" and str(run.config_path) in str(read.failure)


@pytest.mark.parametrize("chunk", [7, 64, 1000, 1 << 16])
def test_the_end_of_the_metrics_is_read_in_chunks_of_any_size(run, monkeypatch, chunk) -> None:
    monkeypatch.setattr(progress, "_CHUNK_BYTES", chunk)
    evaluation = {"kind": "eval", "step": 40, "loss": 7.5}
    lines = [*(step(n, pad="x" * (n % 13)) for n in range(1, 41)), evaluation]
    lines += [step(n) for n in range(41, 46)]
    write(run, lines, torn='{"step": 46, "lo')
    read = Gauge(run).read()
    assert (read.step, read.loss, read.validation_loss) == (45, 8.55, 7.5)
    seen = list(progress._backwards(run.metrics_path))
    assert seen == lines[::-1]


def test_the_speed_is_that_of_the_last_steps(run: RunDirectory) -> None:
    slow = [step(n, tokens_per_second=1.0) for n in range(1, 30)]
    write(run, [*slow, *(step(n) for n in range(30, 50))])
    with RunLock(run.lock_path):
        read = Gauge(run).read()
    assert read.seconds_left == pytest.approx((run.config().schedule.total_tokens - 49_000) / 500)
    assert read.tokens_per_second == 500
