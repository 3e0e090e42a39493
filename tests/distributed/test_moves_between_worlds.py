"""A checkpoint goes on with another number of processes: every element, and the steps after it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distributed.ranks import TESTS, TIMEOUT_S, Report
from distributed.state import assembled
from distributed.world_moves import FURTHER_STEPS, MOVES, SAVED_AFTER

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

# Relative: sums over ranks and micro batches are taken in another order.
TOLERANCE = 1e-6
LOSSES = ("loss", "objective", "balance_loss", "mtp_loss", "grad_norm")
# Of counts and biases alone: a token that turned at a border between two experts would show.
EXACT = ("step", "tokens", "lr", "max_violation", "dead_experts", "bias_")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("worlds")
    path = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])
    done = subprocess.run(
        [sys.executable, TESTS / "distributed" / "world_moves.py", directory],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


def reports(home: Path, name: str, world: int) -> list[Report]:
    return [
        Report(
            json.loads((home / f"{name}.rank-{rank}.json").read_text()),
            load_file(home / f"{name}.rank-{rank}.safetensors"),
        )
        for rank in range(world)
    ]


@pytest.mark.parametrize(("source", "target"), MOVES, ids=lambda layout: layout.name)
def test_every_element_moves_and_the_next_steps_are_the_same(home, source, target):
    saved = reports(home, f"{source.name}.saved", source.row.world)
    loaded = reports(home, f"{source.name}.{target.name}", target.row.world)
    before, after = assembled(saved, "saved"), assembled(loaded, "loaded")
    assert before.keys() == after.keys()
    assert {key.split("/")[0] for key in before} == {"master", "exp_avg", "exp_avg_sq", "buffer"}
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    expected = saved[0].values["lines"]
    assert [line["step"] for line in expected] == [
        SAVED_AFTER + n + 1 for n in range(FURTHER_STEPS)
    ]
    for report in loaded:
        for ours, theirs in zip(report.values["lines"], expected, strict=True):
            for key, value in theirs.items():
                if key in LOSSES:
                    assert ours[key] == pytest.approx(value, rel=TOLERANCE), key
                elif key.startswith(EXACT):
                    assert ours[key] == value, key
