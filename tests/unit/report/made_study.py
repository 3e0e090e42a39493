"""Runs of a study in memory, for what does not read files."""

from pathlib import Path
from typing import Any

import numpy as np

from dsv3.config.recipe import Recipe
from dsv3.report.study import Curve, ExpertLoad, Study, StudyRun
from unit.report.made_runs import START, provenance, record


def curve(values: Any, tokens_per_step: int = 16) -> Curve:
    """A figure of every step."""
    steps = np.arange(1, len(values) + 1)
    return Curve(steps, steps * tokens_per_step, np.asarray(values, dtype=np.float64))


def made_run(arm: str, seed: int, loss: float | None = 2.5, **changes: Any) -> StudyRun:
    """A finished run with this loss; None: one that has yet to end."""
    fields: dict[str, Any] = {
        "id": f"{arm}-{seed}",
        "arm": arm,
        "seed": seed,
        "directory": Path("runs"),
        "status": "stopped" if loss is None else "done",
        "config": None,
        "result": None if loss is None else {"loss": loss, "bpb": loss / 2},
        "failure": None,
        "curves": {"loss": curve([4.0, 3.0])},
        "evaluations": (),
        "expert_load": None,
        "start": START,
        "provenance": provenance(),
        "cost_s": 3.0,
        "devices": 2,
        "device_kind": "CPU core",
        "attempts": (provenance(),),
    }
    return StudyRun(**(fields | changes))


def made_study(*runs: StudyRun, recipe: Recipe | None = None) -> Study:
    """A study of these runs; the arm of the first is the baseline."""
    arms: dict[str, list[int]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run.seed)
    return Study(record(Path("runs"), arms, recipe), runs)


def load(relative_DLE: Any) -> ExpertLoad:
    """A load with made-up names."""
    relative_DLE = np.asarray(relative_DLE, dtype=np.float64)
    domains, layers, _ = relative_DLE.shape
    return ExpertLoad(tuple("abc"[:domains]), tuple(map(str, range(layers))), relative_DLE)
