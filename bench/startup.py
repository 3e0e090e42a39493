"""How long people wait for an answer: whole processes, alternating with the bare interpreter."""

import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

COMMANDS: dict[str, list[str]] = {
    "dsv3 --help": ["-m", "dsv3", "--help"],
    "dsv3 train --cfg job": ["-m", "dsv3", "train", "--cfg", "job"],
    "dsv3 train model=moe_228b (refused)": [
        *("-m", "dsv3", "train", "model=moe_228b", "balance=aux_free")
    ],
}
EXIT_CODES = {"dsv3 train model=moe_228b (refused)": 3}


def measure(rounds: int) -> list[dict[str, Any]]:
    """Median seconds of each command, and by how much it exceeds a bare interpreter's."""
    times: dict[str, list[float]] = {name: [] for name in ("python -c pass", *COMMANDS)}
    with tempfile.TemporaryDirectory() as elsewhere:
        for _ in range(rounds + 1):  # the first round fills the caches of the disk
            times["python -c pass"].append(_elapsed_s(["-c", "pass"], 0, elsewhere))
            for name, arguments in COMMANDS.items():
                code = EXIT_CODES.get(name, 0)
                times[name].append(_elapsed_s(arguments, code, elsewhere))
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    bare_s = medians.pop("python -c pass")
    return [
        {"command": name, "median_s": median_s, "beyond_bare_s": median_s - bare_s}
        for name, median_s in medians.items()
    ]


def _elapsed_s(arguments: list[str], exit_code: int, directory: str) -> float:
    begin_s = time.perf_counter()
    finished = subprocess.run(
        [sys.executable, *arguments], cwd=directory, capture_output=True, check=False
    )
    elapsed_s = time.perf_counter() - begin_s
    if finished.returncode != exit_code:
        message = finished.stderr.decode(errors="replace")
        raise RuntimeError(f"{arguments} exited {finished.returncode}: {message}")
    return elapsed_s
