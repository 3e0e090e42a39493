"""What saving costs a run, and how soon a stopped run makes steps again: real runs of the command.

A run saves every 50 steps and is stopped by SIGTERM, then started again a few times, each time
until its first new step. Figures are medians over saves and over starts. Memory is that of the
rank, without the pages of files.
"""

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

EVERY_STEPS = 50
NEVER = 10**9
POLL_S = 0.005
MODELS = {"moe_nano": ["model=moe_nano"], "moe_tiny": ["model=moe_tiny"]}


def measure(*, quick: bool) -> Iterator[dict[str, Any]]:
    """Each model's run: with one save and one start if `quick`, else with six and five."""
    saves, starts = (1, 1) if quick else (6, 5)
    for name, overrides in MODELS.items():
        with tempfile.TemporaryDirectory() as home:
            yield {"model": name} | _measure(Path(home), overrides, saves, starts)


def show(found: dict[str, Any]) -> None:
    """Print one table."""
    title = f"checkpoints, {found['model']}: one each {EVERY_STEPS} steps"
    table = Table(title=title, title_justify="left")
    for column in ("figure", "value"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    split = found["resume_s"]
    for figure, value in {
        "training stands still for saving, % of wall": f"{found['stall_percent']:.2f}",
        "steps are slower while a save is written, % of wall": f"{found['slower_percent']:.2f}",
        "a save stands in the way, s": f"{found['stall_s']:.3f}",
        "a save is written, s": f"{found['write_s']:.2f}",
        "a step, s": f"{found['step_s']:.3f}",
        "a checkpoint, MB": f"{found['bytes'] / 1e6:.1f}",
        "memory before the first save, MB": f"{found['memory_before_bytes'] / 1e6:.0f}",
        "memory with saves, MB": f"{found['memory_bytes'] / 1e6:.0f}",
        "resume, from the command to its first new step, s": f"{split['total']:.2f}",
        "   the command and all imports": f"{split['command_and_imports']:.2f}",
        "   build, verify, load": f"{split['build_verify_load']:.2f}",
        "   the first step": f"{split['first_step']:.2f}",
    }.items():
        table.add_row(figure, value)
    Console().print(table)


def _measure(home: Path, overrides: list[str], saves: int, starts: int) -> dict[str, Any]:
    words = [
        *overrides,
        f"run_root={home / 'runs'}",
        f"checkpoint.every_steps={EVERY_STEPS}",
        "evaluation.every_steps=null",
        f"schedule.total_tokens={NEVER}",  # it is stopped
    ]
    memory: list[tuple[int, int]] = []
    # All steps from one save to the next count, beside which nothing is written any more.
    _train(words, home, until=EVERY_STEPS * (saves + 1) - 1, memory=memory)
    [run] = (home / "runs").iterdir()
    newest = max((run / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime)
    found = _cost(_lines(run / "metrics.jsonl"), _lines(run / "events.jsonl"))
    return found | {
        "bytes": sum(path.stat().st_size for path in newest.iterdir()),
        "memory_before_bytes": max(b for steps, b in memory if 0 < steps < EVERY_STEPS),
        "memory_bytes": max(b for steps, b in memory if steps >= EVERY_STEPS),
        "resume_s": _median_of([_resume(words, home, run) for _ in range(starts)]),
    }


def _cost(lines: list[dict[str, Any]], events: list[dict[str, Any]]) -> dict[str, float]:
    """Of the steps after the first save: the steps before it warm up."""
    tokens = lines[1]["tokens"] - lines[0]["tokens"]
    seconds = {line["step"]: tokens / line["tokens_per_second"] for line in lines}
    # What the save after step n has cost is on the line of step n + 1.
    stalls = [line["checkpoint_stall_s"] for line in lines[EVERY_STEPS:]]
    counted = [step for step in seconds if step > EVERY_STEPS]
    wall_s = sum(seconds[step] for step in counted) + sum(stalls)
    written = [e for e in events if e["event"] == "checkpoint" and e["step"] % EVERY_STEPS == 0]
    beside = [s for e in written for s in _steps_beside(e, seconds)]
    alone = [seconds[step] for step in counted if step not in beside]
    step_s = statistics.median(alone)
    slower_s = sum(seconds[step] - step_s for step in beside)
    return {
        "stall_percent": 100 * sum(stalls) / wall_s,
        "slower_percent": 100 * slower_s / wall_s,
        "stall_s": statistics.median(sorted(stalls, reverse=True)[: len(written)]),
        "write_s": statistics.median(event["seconds"] for event in written),
        "step_s": step_s,
    }


def _steps_beside(event: dict[str, Any], seconds: dict[int, float]) -> list[int]:
    """The steps that were made while a save was written, and the one in which that ended."""
    left_s, step, steps = event["seconds"], event["step"] + 1, []
    while left_s > 0 and step in seconds:
        steps.append(step)
        left_s -= seconds[step]
        step += 1
    return steps


def _resume(words: list[str], home: Path, run: Path) -> dict[str, float]:
    """Seconds of one start, from the command to its first new step, and what they go into."""
    began = time.time()
    first_line = _train(words, home, until=len(_lines(run / "metrics.jsonl")) + 1)
    collected = _time(_lines(run / "attempts.jsonl")[-1]["collected_at"])
    events = _lines(run / "events.jsonl")
    started = _time([event["time"] for event in events if event["event"] == "started"][-1])
    return {
        "total": first_line - began,
        "command_and_imports": collected - began,
        "build_verify_load": started - collected,
        "first_step": first_line - started,
    }


def _train(
    words: list[str], home: Path, *, until: int, memory: list[tuple[int, int]] | None = None
) -> float:
    """Train until so many lines are written, then stop; returns the time of the last one."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dsv3", "train", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        at = _follow(process, home, until, memory)
        process.send_signal(signal.SIGTERM)
        errors = process.communicate()[1]
    finally:
        process.kill()
    if process.returncode != 85:
        raise RuntimeError(f"dsv3 exited {process.returncode}: {errors}")
    return at


def _follow(
    process: subprocess.Popen[str], home: Path, until: int, memory: list[tuple[int, int]] | None
) -> float:
    """Look until so many lines are there; returns the time of the last one."""
    anonymous = _memory_of(home)
    while (steps := _steps(home)) < until:
        if process.poll() is not None:
            raise RuntimeError(f"dsv3 exited {process.returncode}: {process.communicate()[1]}")
        if memory is not None and steps > 0:
            memory.append((steps, anonymous()))
        time.sleep(POLL_S)
    return time.time()


def _steps(home: Path) -> int:
    """Lines so far."""
    return sum(path.read_bytes().count(b"\n") for path in home.glob("runs/*/metrics.jsonl"))


def _memory_of(home: Path) -> Callable[[], int]:
    """Bytes of the rank that trains below `home` that are no pages of files."""
    found: list[psutil.Process] = []

    def anonymous() -> int:
        if not found:
            [lock] = home.glob("runs/*/lock")
            found.append(psutil.Process(json.loads(lock.read_text())["pid"]))
        memory = found[0].memory_info()
        return int(memory.rss - memory.shared)

    return anonymous


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _time(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def _median_of(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}
