"""Runs on disk as training leaves them, made up: for what reads their files."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save

from dsv3.config.recipe import Recipe
from dsv3.config.root import RunConfig
from dsv3.sweep.record import SweepRecord, SweepRun

DOMAINS, LAYERS, EXPERTS = ("c", "math", "python"), ("1", "2"), 4
STEPS, SEQUENCE_LENGTH = 6, 8
START = {"weights.model": "aa", "data_order": "bb"}
RECIPE: dict[str, Any] = {
    "question": "Does it matter?",
    "axis": ["balance"],
    "baseline": "base",
    "arms": {"base": ["balance=aux_loss"], "free": ["balance=aux_free"]},
    "seeds": [1, 2, 3],
    "metric": "loss",
    "rule": {"better": "lower"},
}


def recipe(**changes: Any) -> Recipe:
    """A recipe of two arms."""
    return Recipe.model_validate(RECIPE | changes)


def provenance(**changes: Any) -> dict[str, Any]:
    """What a start records of itself."""
    return {
        "git": {"commit": "c0ffee", "dirty": False, "diff_file": None},
        "versions": {"dsv3": "0.1.0"},
        "numerics_version": 2,
        "data_fingerprint": "text",
        "threads_per_rank": 2,
        "layout": {"world_size": 1},
        "machine": {"gpus": []},
    } | changes


def step_lines(losses: list[float]) -> list[dict[str, Any]]:
    """Steps of 16 tokens at 32 tokens per second: half a second each."""
    return [
        {
            "step": step,
            "tokens": 16 * step,
            "loss": loss,
            "mtp_loss": [loss + 1],
            "lr": 1e-3,
            "tokens_per_second": 32.0,
            "max_violation": 0.5,
            "skipped": False,
            "max_violation_per_layer": {"1": 0.5},
        }
        for step, loss in enumerate(losses, start=1)
    ]


def make_run(root: Path, id: str, config: RunConfig, **state: Any) -> Path:
    """Write a run directory.

    `losses` of its steps; `result`, `failure` if it ended; `start`, `attempts`; `load` [domains,
    layers, experts].
    """
    run = root / id
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    attempts = state.get("attempts", [provenance()])
    (run / "provenance.json").write_text(json.dumps(provenance()))
    write_lines(run / "attempts.jsonl", attempts)
    lines = step_lines(state.get("losses", []))
    if state.get("start", START) is not None:
        (run / "start.json").write_text(json.dumps(state.get("start", START)))
    result = state.get("result")
    if result is not None:
        lines.append({"kind": "eval", "step": len(lines), "tokens": 16 * len(lines), **result})
        done = {"finished_at": "now", **result, "steps": STEPS}
        (run / "DONE").write_text(json.dumps(done))
        make_evaluation(run, state.get("load"))
    if "failure" in state:
        (run / "FAILED").write_text(json.dumps(state["failure"]))
    write_lines(run / "metrics.jsonl", lines)
    return run


def make_evaluation(run: Path, load_DLE: Any = None) -> None:
    """Write the files of the last evaluation."""
    directory = run / "evaluations" / f"step-{STEPS}"
    directory.mkdir(parents=True)
    if load_DLE is None:
        load_DLE = np.ones((len(DOMAINS), len(LAYERS), EXPERTS))
    names = {"domains": DOMAINS, "layers": [f"model.layers.{number}.mlp" for number in LAYERS]}
    relative_DLE = np.asarray(load_DLE, dtype=np.float64)
    content = save({"relative_load": relative_DLE}, metadata={"names": json.dumps(names)})
    (directory / "expert_load.safetensors").write_bytes(content)
    figures = {
        "computed_with": {"device": "cpu", "threads": 2},
        "expert_load": {
            "file": "expert_load.safetensors",
            "sha256": hashlib.sha256(content).hexdigest(),
        },
    }
    (directory / "evaluation.json").write_text(json.dumps(figures))


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write a log."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def record(root: Path, arms: dict[str, list[int]], of_recipe: Recipe | None = None) -> SweepRecord:
    """A sweep of arms with their seeds; the first one is the baseline."""
    runs = tuple(
        SweepRun(id=f"{arm}-{seed}", arm=arm, seed=seed, overrides=())
        for arm, seeds in arms.items()
        for seed in seeds
    )
    return SweepRecord(
        id="made-1",
        name="made",
        model="moe_nano",
        run_root=root,
        created_at="now",
        command=("dsv3", "train"),
        recipe=of_recipe,
        baseline=next(iter(arms)),
        runs=runs,
    )
