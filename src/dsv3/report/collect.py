"""From the files of the runs to a `Study`: torch-free, read once, whatever state they are in.

A run that is missing, unfinished, failed or damaged is part of the study as that; nothing here
writes, takes a lock or raises for one run's sake.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors import safe_open

from dsv3.config.root import RunConfig
from dsv3.errors import CheckpointError
from dsv3.report.spells import spells
from dsv3.report.study import Curve, ExpertLoad, Spell, Study, StudyRun
from dsv3.runs.directory import RunDirectory, Status
from dsv3.runs.files import read_json
from dsv3.runs.records import read_lines
from dsv3.sweep.record import SweepRecord, SweepRun

MISSING, DAMAGED = "missing", "damaged"
GPU, CPU_CORE = "GPU", "CPU core"

# The one in Python takes 20 times as long: a second for 20 runs.
_YAML: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def collect(record: SweepRecord, *, beside: Path | None = None) -> Study:
    """Read all runs of a sweep; `beside` is the directory of the record's file.

    Runs are looked for in the record's run root and, if they moved together with the record, where
    that root would be now.
    """
    roots = list(_run_roots(record.run_root, beside))
    return Study(record, tuple(_collect_run(run, roots) for run in record.runs))


def _run_roots(run_root: Path, beside: Path | None) -> Iterator[Path]:
    """Where runs may be: as recorded, then its last parts below each directory above `beside`."""
    yield run_root
    if beside is None:
        return
    for above in (beside, *beside.absolute().parents):
        parts = run_root.parts[1:]
        for length in range(1, len(parts) + 1):
            yield above.joinpath(*parts[-length:])


def _collect_run(asked: SweepRun, roots: Iterable[Path]) -> StudyRun:
    places = [root / asked.id for root in roots]
    found = next((place for place in places if RunDirectory(place).exists()), None)
    if found is None:
        return _unread(asked, places[0], MISSING)
    run = RunDirectory(found)
    try:
        return _read(asked, run)
    except CheckpointError as error:
        return _unread(asked, found, DAMAGED, tuple(map(str, error.problems)))
    except OSError as error:
        return _unread(asked, found, DAMAGED, (str(error),))


def _unread(
    asked: SweepRun, directory: Path, status: str, problems: tuple[str, ...] = ()
) -> StudyRun:
    return StudyRun(
        id=asked.id,
        arm=asked.arm,
        seed=asked.seed,
        directory=directory,
        status=status,
        config=None,
        result=None,
        failure=None,
        curves={},
        evaluations=(),
        expert_load=None,
        start=None,
        provenance={},
        cost_s=None,
        devices=0,
        device_kind="",
        problems=problems,
    )


def _read(asked: SweepRun, run: RunDirectory) -> StudyRun:
    problems: list[str] = []
    status, result = run.status(), run.result()
    lines = list(read_lines(run.metrics_path))
    steps = {line["step"]: line for line in lines if "kind" not in line}
    ordered = [steps[step] for step in sorted(steps)]
    attempts = run.attempts()
    provenance = run.provenance()
    figures, load = (None, None) if result is None else _evaluation(run, result, problems)
    devices, kind = _devices(attempts[-1] if attempts else provenance, figures)
    return StudyRun(
        id=asked.id,
        arm=asked.arm,
        seed=asked.seed,
        directory=run.path,
        status=str(status),
        config=_config(run.config_path, problems),
        result=result,
        # What stands from before is forgotten only when the ranks start again.
        failure=run.failure() if status is Status.FAILED else None,
        curves=_curves(ordered),
        evaluations=tuple(line for line in lines if line.get("kind") == "eval"),
        expert_load=load,
        start=_start(run, problems),
        provenance=provenance,
        cost_s=_cost_s(ordered),
        devices=devices,
        device_kind=kind,
        attempts=tuple(attempts),
        spells=_spells(run, ordered, result, status, problems),
        problems=tuple(problems),
    )


def _config(path: Path, problems: list[str]) -> RunConfig | None:
    """The frozen configuration; None if this dsv3 does not know its keys."""
    try:
        loader = _YAML(path.read_text(encoding="utf-8"))
        return RunConfig.model_validate(loader.get_single_data())
    except (OSError, ValueError, yaml.YAMLError) as error:
        said = str(error).partition("\n")[0]
        problems.append(f"{path.name}: not a configuration of this dsv3: {said}")
        return None


def _curves(steps: list[dict[str, Any]]) -> dict[str, Curve]:
    """Every figure that is one number; of a list (a number for each MTP module) the first."""
    columns: dict[str, tuple[list[int], list[int], list[float]]] = {}
    for line in steps:
        step, tokens = line["step"], line["tokens"]
        for name, value in line.items():
            if isinstance(value, list) and value:
                value = value[0]  # noqa: PLW2901
            if type(value) not in (int, float) or name in ("step", "tokens"):
                continue
            column = columns.setdefault(name, ([], [], []))
            column[0].append(step)
            column[1].append(tokens)
            column[2].append(value)
    return {
        name: Curve(
            np.array(at, dtype=np.int64),
            np.array(tokens, dtype=np.int64),
            np.array(values, dtype=np.float64),
        )
        for name, (at, tokens, values) in columns.items()
    }


def _cost_s(steps: list[dict[str, Any]]) -> float | None:
    """Wall time of the steps that are in the result: tokens of each over its tokens per second.

    Without start, evaluations, and steps that were lost to a kill and done again.
    """
    total_s, before = 0.0, 0
    for line in steps:
        speed = line.get("tokens_per_second")
        if not speed:
            return None
        total_s += (line["tokens"] - before) / speed
        before = line["tokens"]
    return total_s if steps else None


def _devices(attempt: Mapping[str, Any], figures: Mapping[str, Any] | None) -> tuple[int, str]:
    """What the last start ran on: a GPU a rank, or the cores of all ranks' threads."""
    ranks = int(attempt.get("layout", {}).get("world_size", 1))
    machine = attempt.get("machine", {})
    device = "cuda" if machine.get("gpus") else "cpu"
    if figures is not None:
        device = figures.get("computed_with", {}).get("device", device)
    if device == "cuda":
        return ranks, GPU
    return ranks * int(attempt.get("threads_per_rank", 1)), CPU_CORE


def _evaluation(
    run: RunDirectory, result: Mapping[str, Any], problems: list[str]
) -> tuple[dict[str, Any] | None, ExpertLoad | None]:
    """Figures and expert load of the final evaluation, if its two files belong together."""
    directory = run.evaluations / f"step-{result.get('steps')}"
    try:
        figures = read_json(directory / "evaluation.json")
    except CheckpointError as error:
        problems += map(str, error.problems)
        return None, None
    return figures, _expert_load(directory, figures, problems)


def _expert_load(
    directory: Path, figures: Mapping[str, Any], problems: list[str]
) -> ExpertLoad | None:
    written = figures.get("expert_load", {})
    path = directory / str(written.get("file"))
    try:
        if hashlib.sha256(path.read_bytes()).hexdigest() != written.get("sha256"):
            problems.append(f"{path}: not of the evaluation beside it")
            return None
        with safe_open(path, framework="numpy") as file:
            names = json.loads(file.metadata()["names"])
            relative_DLE = file.get_tensor("relative_load")
    except (OSError, ValueError, KeyError) as error:
        problems.append(f"{path}: {error}")
        return None
    if 0 in relative_DLE.shape:  # a model without MoE layers
        return None
    layers = tuple(name.split(".")[2] for name in names["layers"])
    return ExpertLoad(tuple(names["domains"]), layers, relative_DLE)


def _spells(
    run: RunDirectory,
    steps: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any] | None,
    status: Status,
    problems: list[str],
) -> tuple[Spell, ...]:
    """When the attempts ran; none if the events or their times are damaged."""
    try:
        return spells(
            list(read_lines(run.events_path)),
            steps,
            finished_at=None if result is None else result.get("finished_at"),
            running=status is Status.RUNNING,
        )
    except CheckpointError as error:
        problems += map(str, error.problems)
    except (KeyError, TypeError, ValueError) as error:
        problems.append(f"{run.events_path.name}: without the times of its attempts: {error}")
    return ()


def _start(run: RunDirectory, problems: list[str]) -> dict[str, str] | None:
    if not run.start_path.exists():
        return None
    try:
        return {name: str(value) for name, value in read_json(run.start_path).items()}
    except CheckpointError as error:
        problems += map(str, error.problems)
        return None
