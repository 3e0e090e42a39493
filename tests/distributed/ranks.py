"""Starts N processes over gloo once, runs every case of that world size in them, collects."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor

TESTS = Path(__file__).resolve().parent.parent
TIMEOUT_S = 400


class Report(NamedTuple):
    """What one rank has to say about one case."""

    values: Any  # JSON
    tensors: dict[str, Tensor]


def launch(world: int, directory: Path) -> None:
    """Run the cases with `world` ranks, which write their reports into `directory`.

    Each must end by itself, with exit code 0 and without a word: an abort at exit is a failure.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])
    processes = [
        subprocess.Popen(
            [sys.executable, TESTS / "distributed" / "rank.py", directory],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=directory,
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        )
        for rank in range(world)
    ]
    try:
        outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    failures = [
        f"rank {rank} ended with {process.returncode}:\n{output}"
        for rank, (process, output) in enumerate(zip(processes, outputs, strict=True))
        if process.returncode != 0 or output
    ]
    assert not failures, "\n".join(failures)


def reports_in(directory: Path, world: int) -> dict[str, list[Report]]:
    """By case, what all ranks have reported."""
    by_rank = [_reports(directory, rank) for rank in range(world)]
    return {case: [reports[case] for reports in by_rank] for case in by_rank[0]}


def _reports(directory: Path, rank: int) -> dict[str, Report]:
    values = json.loads((directory / f"rank-{rank}.json").read_bytes())
    tensors: dict[str, dict[str, Tensor]] = {case: {} for case in values}
    for key, tensor in load_file(directory / f"rank-{rank}.safetensors").items():
        case, name = key.split("|", 1)
        tensors[case][name] = tensor
    return {case: Report(values[case], tensors[case]) for case in values}
