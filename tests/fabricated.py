"""A study that nobody trained: arms x seeds with curves, loads, failures and gaps as asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsv3.config.compose import compose
from dsv3.config.recipe import Recipe
from dsv3.report.study import Curve, ExpertLoad, Study, StudyRun
from dsv3.sweep.record import SweepRecord, SweepRun

STEPS, TOKENS_PER_STEP = 266, 1975
DOMAINS = ("c", "docs", "math", "python", "prose")
HOSTILE = "<script>alert(1)</script>&\"'$x_1$`|*_" + "long" * 20 + "\u4f60\u597d\u202e\x07"

ARMS = ("none", "aux_loss", "aux_loss_v2", "aux_free", "aux_free_seq", "aux_batch")
_CONFIGS: dict[str, Any] = {}


def study(
    arms: Sequence[str] = ARMS,
    seeds: Sequence[int] = (1, 2, 3),
    *,
    experts: int = 16,
    layers: int = 3,
    domains: int = 4,
    failed: Sequence[tuple[str, int]] = (),
    missing: Sequence[tuple[str, int]] = (),
    running: Sequence[tuple[str, int]] = (),
    recipe: bool = True,
    reference: str | None = "table5",
    metric: str = "bpb",
) -> Study:
    """Every arm with every seed; the first arm is the baseline."""
    states = {**dict.fromkeys(failed, "failed"), **dict.fromkeys(missing, "missing")}
    states |= dict.fromkeys(running, "running")
    runs = tuple(
        _run(number, arm, seed, states.get((arm, seed), "done"), (domains, layers, experts))
        for number, arm in enumerate(arms)
        for seed in seeds
    )
    asked = tuple(
        SweepRun(id=run.id, arm=run.arm, seed=run.seed, overrides=(f"balance={run.arm}",))
        for run in runs
    )
    written = Recipe(
        question="Does balancing by a bias alone cost less than balancing by a loss?",
        axis=("balance",),
        baseline=arms[0],
        arms={arm: (f"balance={arm}",) for arm in [*arms, "extra"][: max(len(arms), 2)]},
        seeds=tuple(seeds),
        metric=metric,
        rule={"better": "lower", "margin": 0.001},
        reference=reference,
    )
    record = SweepRecord(
        id="table5_balance-0123456789",
        name="table5_balance",
        model="moe_nano",
        run_root=Path("/nowhere/runs"),
        created_at="2026-01-02T03:04:05+00:00",
        command=("some/where/bin/dsv3", "train", "recipe=table5_balance", "model=moe_nano"),
        recipe=written if recipe else None,
        baseline=arms[0],
        runs=asked,
    )
    return Study(record, runs)


def _run(number: int, arm: str, seed: int, status: str, shape: tuple[int, int, int]) -> StudyRun:
    run_id = f"moe_nano-arm{number}-s{seed}-{number:05x}{seed:05x}"
    blank: dict[str, Any] = {
        "id": run_id,
        "arm": arm,
        "seed": seed,
        "directory": Path("/nowhere/runs") / run_id,
        "status": status,
        "config": None,
        "result": None,
        "failure": None,
        "curves": {},
        "evaluations": (),
        "expert_load": None,
        "start": None,
        "provenance": {},
        "cost_s": None,
        "devices": 0,
        "device_kind": "",
    }
    if status == "missing":
        return StudyRun(**blank)
    blank |= _made(number, arm, seed, STEPS if status == "done" else 140)
    if status == "failed":
        problem = {"where": "loss", "rule": "not finite at step 140", "remedy": "lower the lr"}
        blank["failure"] = {"error": "numeric", "exit_code": 5, "problems": [problem]}
    if status == "done":
        blank |= _finished(number, seed, shape)
    return StudyRun(**blank)


def _made(number: int, arm: str, seed: int, steps: int) -> dict[str, Any]:
    """Curves that fall from ln(vocabulary), with noise of the seed (its batches) and of the run."""
    of_seed, of_run = np.random.default_rng(seed), np.random.default_rng([seed, number])
    at = np.arange(1, STEPS + 1)
    loss = 3.7 + 4.3 * np.exp(-at / 40) + 0.15 * of_seed.standard_normal(STEPS)
    loss += 0.01 * np.sin(number) * (1 - np.exp(-at / 80)) + 0.01 * of_run.standard_normal(STEPS)
    peak = 0.3 + 3.5 * (number % 3) / 3
    balance = peak + 0.5 * np.exp(-at / 30) + 0.08 * np.abs(of_run.standard_normal(STEPS))
    columns = {
        "loss": loss,
        "max_violation": balance,
        "max_violation_sequence": balance + 1 + 0.05 * of_run.standard_normal(STEPS),
        "tokens_per_second": 15_000 + 500 * of_run.standard_normal(STEPS),
    }
    curves = {
        name: Curve(at[:steps], at[:steps] * TOKENS_PER_STEP, values[:steps])
        for name, values in columns.items()
    }
    provenance = {
        "collected_at": "2026-01-02T03:05:00+00:00",
        "data_fingerprint": "9ebdfcd5c0fb3cae1c8d549feec40813ce29cc59b74831ff63b63d9aad457182",
        "numerics_version": 2,
        "git": {"commit": "09ece0ca53eb5f9028325cbbe0c5129f70711797", "dirty": False},
        "python": "3.11.7",
        "versions": {"dsv3": "0.1.0", "torch": "2.13.0+cpu", "deepspeed": "0.19.8"},
        "machine": {"host": "vm", "processor": "A Processor", "gpus": [], "cores": 2},
        "layout": {"world_size": 1},
        "threads_per_rank": 2,
    }
    return {
        "config": _config(arm if arm in ARMS else "none", seed),
        "curves": curves,
        "provenance": provenance,
        "start": {"weights.model": f"weights of {seed}", "data_order": f"order of {seed}"},
        "cost_s": 35.0 + number,
        "devices": 2,
        "device_kind": "CPU core",
    }


def _finished(number: int, seed: int, shape: tuple[int, int, int]) -> dict[str, Any]:
    noise = np.random.default_rng([seed, number, 1])
    loss = 3.77 + 0.02 * np.sin(seed) + 0.01 * np.sin(number) + 0.002 * noise.standard_normal()
    load_DLE = noise.gamma(0.6 + 2 * (number % 3), size=shape)
    load_DLE /= load_DLE.mean(-1, keepdims=True)
    result = {
        "loss": loss,
        "bpb": loss / 1.54,
        "domains": {name: {"loss": loss, "bpb": loss / 1.54} for name in DOMAINS[: shape[0]]},
        "max_violation_global": 0.2 + number % 3 + 0.05 * noise.standard_normal(),
        "max_violation_sequence": 1.6 + number % 3 + 0.05 * noise.standard_normal(),
        "steps": STEPS,
        "tokens_trained": STEPS * TOKENS_PER_STEP,
        "finished_at": "2026-01-02T03:06:00+00:00",
    }
    layers = tuple(str(layer) for layer in range(1, shape[1] + 1))
    return {"result": result, "expert_load": ExpertLoad(DOMAINS[: shape[0]], layers, load_DLE)}


def _config(balance: str, seed: int) -> Any:
    if balance not in _CONFIGS:
        _CONFIGS[balance] = compose(["model=moe_nano", f"balance={balance}"]).config
    return _CONFIGS[balance].model_copy(update={"seed": seed})
