"""Two ranks against one: losses, norms and state agree, fragments tile, a NaN stops both."""

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from patience import HANG_S

pytestmark = pytest.mark.distributed

WORKER = Path(__file__).parent / "engine_rank.py"


# Precision, expert parallel size, ZeRO stage; the relative tolerance of losses and norms. Sums over
# ranks are taken in another order: a few FP32 ulps in FP32 (contract 1e-6), and in bf16 what it
# takes to round one weight in a thousand the other way.
LAYOUTS = {"fp32,2,1": 1e-6, "fp32,1,2": 1e-6, "bf16,2,1": 1e-3, "bf16,1,2": 1e-3}


def run(world: int, layouts: list[str]) -> list[list[dict]]:
    """Start the ranks once for all layouts; by layout, what every rank reports."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(world):
        environment = dict(os.environ, OMP_NUM_THREADS="1")
        if world > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes.append(
            subprocess.Popen(
                [sys.executable, WORKER, *layouts],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                text=True,
            )
        )
    reports = []
    for process in processes:
        output, errors = process.communicate(timeout=HANG_S)
        assert process.returncode == 0, errors
        assert errors == ""
        reports.append(json.loads(output))
    return list(map(list, zip(*reports, strict=True)))


def assembled(reports: list[dict]) -> dict[str, torch.Tensor]:
    """Put the fragments of all ranks together; they must cover each tensor exactly once."""
    tensors: dict[str, torch.Tensor] = {}
    for report in reports:
        for key, shape, offset, values in report["fragments"]:
            flat = tensors.setdefault(key, torch.full((math.prod(shape),), torch.nan))
            target = flat[offset : offset + len(values)]
            assert target.isnan().all(), f"{key} twice"
            target.copy_(torch.tensor(values))
    assert not any(tensor.isnan().any() for tensor in tensors.values())
    return tensors


def test_two_ranks_equal_one():
    alone = dict(zip(("fp32", "bf16"), run(1, ["fp32,1,1", "bf16,1,1"]), strict=True))
    for (layout, tolerance), pair in zip(LAYOUTS.items(), run(2, list(LAYOUTS)), strict=True):
        single = alone[layout.split(",")[0]]
        assert pair[0]["results"] == pair[1]["results"], "every rank reports the same"
        ours, theirs = list(pair[0]["results"]), list(single[0]["results"])
        assert (ours.pop(2), theirs.pop(2)) == ("loss", "loss")
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=tolerance, atol=0)
        left, right = assembled(pair), assembled(single)
        assert left.keys() == right.keys()
        for key in left:
            torch.testing.assert_close(
                left[key], right[key], rtol=10 * tolerance, atol=0.1 * tolerance
            )
