"""A run in FP8 that is stopped and asked for again equals one that never was, bit for bit."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from faults.small_run import tensors, write_text

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

STEPS, TOKENS = 60, 8 * 128
OVERRIDES = [
    "model=moe_tiny",
    "precision=fp8_block",
    "model.num_hidden_layers=3",
    "schedule.sequence_length=128",
    "schedule.global_batch_size=8",
    "schedule.batch_size_quantum=8",
    "schedule.micro_batch_size=4",
    f"schedule.total_tokens={STEPS * TOKENS}",
    "checkpoint.every_steps=20",
    "evaluation.every_steps=20",
    "evaluation.sequences=8",
    "run.digests=true",
    "data=jsonl",
]


def command(text: Path) -> list[str]:
    return [sys.executable, "-m", "dsv3", "train", *OVERRIDES, f"data.path={text}"]


def run_of(directory: Path) -> Path:
    (run,) = (path.parent for path in directory.rglob("digests.jsonl"))
    return run


def test_a_stopped_run_goes_on_bit_for_bit(te: Any, tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.jsonl", documents=400)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for directory in (whole, cut):
        directory.mkdir()
    subprocess.run(command(text), cwd=whole, check=True)

    stopped = subprocess.Popen(command(text), cwd=cut)
    until = time.monotonic() + 300
    while not any(cut.rglob("*.safetensors")) and time.monotonic() < until:
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(timeout=120) in (85, 0)
    subprocess.run(command(text), cwd=cut, check=True)

    lines = [
        {
            line["step"]: line
            for line in map(json.loads, file.read_text().splitlines())
            if "step" in line
        }
        for file in (run_of(whole) / "digests.jsonl", run_of(cut) / "digests.jsonl")
    ]
    assert lines[0] == lines[1]
    last = [max(run_of(d).glob("checkpoints/*"), key=lambda p: p.name) for d in (whole, cut)]
    assert tensors(last[0]) == tensors(last[1])
