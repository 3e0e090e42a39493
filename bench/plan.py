"""How long a plan takes: whole processes, of one run, of a sweep, of a search."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

COMMANDS: dict[str, tuple[list[str], float]] = {
    "one run, 671B": (["model=moe_671b"], 1.0),
    "a sweep of 200 runs, 228B": (
        ["-m", "model=moe_228b", "balance=aux_free,aux_loss_v2", "seed=range(1,101)"],
        15.0,
    ),
    "layouts of 228B on 512 GPUs": (
        ["model=moe_228b", "--gpus", "512", "--hardware", "h100"],
        10.0,
    ),
}
"""What is asked, and the seconds it should take on two cores."""


def measure(*, quick: bool) -> Iterator[dict[str, Any]]:
    """Median seconds of each command."""
    rounds = 1 if quick else 3
    for name, (words, target_s) in COMMANDS.items():
        taken = [_elapsed_s(words) for _ in range(rounds)]
        yield {"what": name, "median_s": statistics.median(taken), "target_s": target_s}


def show(found: dict[str, Any]) -> None:
    """Print one row."""
    table = Table(title=f"plan: {found['what']}", title_justify="left")
    for column in ("s", "target, s"):
        table.add_column(column)
    table.add_row(f"{found['median_s']:.2f}", f"{found['target_s']:g}")
    Console().print(table)


def _elapsed_s(words: list[str]) -> float:
    with tempfile.TemporaryDirectory() as elsewhere:
        began_s = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "dsv3", "plan", *words],
            cwd=elsewhere,
            capture_output=True,
            check=True,
        )
        return time.perf_counter() - began_s
