"""`dsv3 eval`: the loss of a run on held-out text and the load of its experts, at a checkpoint."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsv3.commands import console
from dsv3.config.compose import compose
from dsv3.config.root import RunConfig
from dsv3.config.suggest import did_you_mean, listed
from dsv3.errors import CapacityError, ConfigError, Dsv3Error, Problem
from dsv3.launch.local import launch_evaluation
from dsv3.machine import this_machine
from dsv3.plan.capacity import describe_machine
from dsv3.runs.directory import RunDirectory
from dsv3.runs.files import read_json
from dsv3.runs.rank import EvaluationArguments

SECTIONS = ("evaluation", "launcher")
FIGURES = "evaluation.json"
MOST_IDS = 8


def evaluate(
    run: str, overrides: Sequence[str], *, step: int | None, ema: bool = False, as_json: bool
) -> int:
    """Evaluate a checkpoint of `run` in a process as its ranks are; returns the exit code.

    The run itself is only read, so it may be training. Raises ConfigError if there is no such run,
    it has no average, or an override is none of an evaluation's, DataError if the data are not the
    run's, and what ended the process.
    """
    words, composed = _understood(overrides)
    directory = _find(run, composed.run_root)
    config = _with(directory.latest_config(), composed, words)
    if ema and config.ema.decay is None:
        rule = f"{directory.path} was trained with ema.decay=null and has no average"
        raise ConfigError(Problem("--ema", rule, "leave it out, or train a run with ema=on"))
    _refuse_missing_gpu(config)
    _prepare(directory, config)
    with tempfile.TemporaryDirectory(prefix="dsv3-eval-") as temporary:
        report = Path(temporary) / "report.json"
        arguments = EvaluationArguments(
            directory.path, directory.config_file(config), report, step, as_json, ema
        )
        code = launch_evaluation(arguments, config)
        if code != 0 and not report.exists():
            raise Dsv3Error(f"the evaluation of {directory.path} ended with exit code {code}")
        found = read_json(report)
    if "error" in found:
        raise Dsv3Error.from_record(found["error"])
    _print(directory, Path(found["directory"]), as_json=as_json)
    return code


def _understood(overrides: Sequence[str]) -> tuple[tuple[str, ...], RunConfig]:
    """The overrides in canonical spelling, and a configuration in which they have been checked."""
    composed = compose(overrides)
    problems = [
        Problem(word, *wrong) for word in composed.overrides if (wrong := _wrong(word)) is not None
    ]
    if problems:
        raise ConfigError(problems)
    return composed.overrides, composed.config


def _wrong(word: str) -> tuple[str, str] | None:
    """Rule and remedy if a run cannot be evaluated with this override."""
    key = word.partition("=")[0]
    if key == "evaluation.every_steps":
        rule = "says when training evaluates; this evaluates once"
        return rule, "leave it out, or give it to `dsv3 train`"
    if key == "run_root" or key.split(".")[0] in SECTIONS:
        return None
    rule = f"a run is evaluated as it is: only {listed(f'{s}.*' for s in SECTIONS)} can be changed"
    return rule, "leave it out, or train a run with it and evaluate that"


def _find(run: str, run_root: str) -> RunDirectory:
    """The run at this path or of this id; raises ConfigError with the ids that are near."""
    root = Path(run_root).expanduser()
    for path in (Path(run).expanduser(), root / run):
        directory = RunDirectory(path.resolve())
        if directory.exists():
            return directory
    ids = sorted(path.parent.name for path in root.glob("*/config.yaml"))
    shown = f"{listed(ids[:MOST_IDS])}{' ...' if len(ids) > MOST_IDS else ''}"
    there = f"runs there: {shown}" if ids else "there are none; run_root=DIR looks elsewhere"
    rule = f"there is no run directory of this name, nor a run of this id in {root}"
    raise ConfigError(Problem(f"eval {run}", rule, did_you_mean(run, ids) or there))


def _with(ran: RunConfig, composed: RunConfig, words: Sequence[str]) -> RunConfig:
    """The configuration the run had, with the overrides of this evaluation."""
    changed = {}
    for section in SECTIONS:
        keys = [word.partition("=")[0].partition(".") for word in words]
        if any(key == section and not name for key, _, name in keys):
            changed[section] = getattr(composed, section)
            continue
        names = [name for key, _, name in keys if key == section]
        values = {name: getattr(getattr(composed, section), name) for name in names}
        changed[section] = getattr(ran, section).model_copy(update=values)
    return ran.model_copy(update=changed)


def _refuse_missing_gpu(config: RunConfig) -> None:
    """Raise CapacityError if a GPU is asked for and this machine has none."""
    machine = this_machine()
    if config.launcher.device == "cuda" and not machine.gpus:
        rule = f"this machine has {describe_machine(machine)}"
        raise CapacityError(Problem("launcher.device=cuda", rule, "write launcher.device=cpu"))


def _prepare(directory: RunDirectory, config: RunConfig) -> None:
    """Find or make the prepared text, showing progress, and refuse other data than the run's."""
    from dsv3.commands.progress import preparation_progress
    from dsv3.data.prepare import prepare

    with preparation_progress() as progress:
        data = prepare(config.data, vocab_size=config.model.vocab_size, progress=progress)
    directory.check_frozen(data.fingerprint)


def _print(directory: RunDirectory, written: Path, *, as_json: bool) -> None:
    record = read_json(written / FIGURES)
    load = written / record["expert_load"]["file"]
    if as_json:
        paths = {"figures": str(written / FIGURES), "expert_load": str(load)}
        console.write_json({"run": directory.id, "evaluation": record, "files": paths})
        return
    console.write(f"run              {directory.path}")
    console.write(f"after            step {record['step']}, {record['tokens']:,} tokens")
    if record["weights"] == "ema":
        console.write(f"weights          average, decay {directory.config().ema.decay:g}")
    console.write(f"validation loss  {record['loss']:.4f} nats per token")
    console.write(f"bits per byte    {record['bpb']:.4f}")
    if "max_violation_global" in record:
        console.write(f"MaxVio global    {record['max_violation_global']:.4f}")
    for depth, rate in enumerate(record.get("mtp_acceptance", []), start=1):
        console.write(f"MTP depth {depth}      {rate:.1%} accepted")
    _print_tables(record)
    console.write(f"figures          {written / FIGURES}")
    console.write(f"expert load      {load}")


def _print_tables(record: dict[str, Any]) -> None:
    """One row a domain, one a layer."""
    domains = [
        (name, str(d["sequences"]), *(_figure(d.get(k)) for k in ("loss", "bpb", "max_violation")))
        for name, d in record["domains"].items()
    ]
    titles = ("domain", "sequences", "validation loss", "bits per byte", "MaxVio")
    console.write_table(titles, domains, numbers_from=1)
    measures = ("max_violation_global", "max_violation_sequence", "load_entropy")
    layers = [
        (number, *(_figure(layer[key]) for key in measures), str(layer["dead_experts"]))
        for number, layer in record["layers"].items()
    ]
    if layers:
        titles = ("layer", "MaxVio global", "in a sequence", "load entropy", "dead experts")
        console.write_table(titles, layers, numbers_from=1)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
