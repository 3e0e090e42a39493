"""`dsv3 plan`: what a run, or every run of a sweep, is and takes, before anything starts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsv3.commands.console import write_json, write_table
from dsv3.commands.lint import as_data, warn
from dsv3.commands.trace import trace
from dsv3.config.compose import Composed
from dsv3.plan.description import describe_balance, describe_layout, describe_mtp
from dsv3.plan.imbalance import DEFAULT_MAX_VIOLATION
from dsv3.plan.quantities import count, flops, plural, size
from dsv3.plan.record import plan_record
from dsv3.sweep.expand import configurations, names_recipe


def plan(
    overrides: Sequence[str],
    *,
    multirun: bool,
    config_dir: Path | None,
    strict: bool,
    as_json: bool,
    traced: bool = False,
    max_violation: float | None = None,
) -> int:
    """Print the plan of one run, or of all runs of a sweep or a recipe; returns 0.

    With `traced` what a run's program allocates, its experts as loaded as `max_violation` says.
    Raises ConfigError if any of the configurations is wrong, or with `strict` in a known trap.
    """
    runs = configurations(overrides, multirun=multirun, config_dir=config_dir)
    warn([run.config for run in runs], strict=strict, quiet=as_json)
    if traced:
        load = DEFAULT_MAX_VIOLATION if max_violation is None else max_violation
        return trace(runs, max_violation=load, as_json=as_json)
    if multirun or names_recipe(overrides):
        _print_sweep(runs, as_json=as_json)
    else:
        _print_run(runs[0], as_json=as_json)
    return 0


def _print_run(composed: Composed, *, as_json: bool) -> None:
    record = _record(composed)
    if as_json:
        write_json(record)
        return
    write_table((), _rows(composed, record), title=f"{record['model']}: the plan")


def _rows(composed: Composed, record: dict[str, Any]) -> list[tuple[str, str]]:
    parameters, memory = record["parameters"], record["memory"]
    steps = plural(record["steps"], "step")
    length = f"{count(record['tokens'])} in {steps} of {_step(composed)}"
    layout = describe_layout(composed.config.parallelism)
    return [
        ("parameters", f"{count(parameters['total'], 6)} ({parameters['total']:,})"),
        (
            "active parameters",
            f"{count(parameters['active'], 6)} (body + head;"
            f" {count(parameters['active_with_embedding'], 6)} with the embedding)",
        ),
        (
            "FLOPs per token",
            f"{flops(record['flops_per_token'])} (6 x active + causal attention)",
        ),
        ("MTP, beside", _mtp_line(composed, record["mtp"])),
        ("FLOPs in all", flops(record["total_flops"])),
        ("tokens", length),
        ("balance", describe_balance(composed.config.balance)),
        ("world size", f"{record['world_size']:,} ({layout})"),
        ("precision", record["precision"]),
        (
            "state per rank",
            f"{size(memory['state_bytes_per_rank'])} without activations"
            f" (weights {size(memory['weights_bytes_per_rank'])},"
            f" gradients {size(memory['gradients_bytes_per_rank'])},"
            f" optimizer {size(memory['optimizer_bytes_per_rank'])})",
        ),
        ("state of all ranks", size(memory["state_bytes_of_all_ranks"])),
    ]


def _mtp_line(composed: Composed, mtp: dict[str, Any]) -> str:
    parameters, modules = mtp["parameters"], describe_mtp(composed.config.mtp)
    if not modules:
        return "none"
    return (
        f"{modules}: {count(parameters['total'], 5)} parameters,"
        f" {count(parameters['active'], 5)} active, {flops(mtp['flops_per_token'])} per token"
    )


def _step(composed: Composed) -> str:
    schedule = composed.config.schedule
    steps = composed.config.gradient_accumulation_steps
    accumulated = "1 micro batch" if steps == 1 else f"{steps:,} micro batches"
    first, peak = schedule.batch_size_at(0), schedule.global_batch_size
    return (
        f"{peak:,} x {schedule.sequence_length:,} tokens"
        f" ({accumulated} of {schedule.micro_batch_size} per rank"
        + (f"; the first of {first:,} sequences)" if first < peak else ")")
    )


def _print_sweep(runs: Sequence[Composed], *, as_json: bool) -> None:
    records = [_record(composed) for composed in runs]
    if as_json:
        write_json({"runs": records})
        return
    columns = ("total", "active", "FLOPs\nper token", "tokens", "FLOPs", "ranks", "state\nper rank")
    shared = set.intersection(*(set(record["overrides"]) for record in records))
    rows = []
    for record in records:
        differs = [override for override in record["overrides"] if override not in shared]
        rows.append(("\n".join(differs or record["overrides"]), *_cells(record)))
    tokens = count(sum(record["tokens"] for record in records))
    in_all = _bare(flops(sum(record["total_flops"] for record in records)))
    rows.append(("all runs", "", "", "", tokens, in_all, "", ""))
    write_table(("run", *columns), rows, title=f"The plan of {len(records)} runs", numbers_from=1)


def _cells(record: dict[str, Any]) -> tuple[str, ...]:
    return (
        count(record["parameters"]["total"]),
        count(record["parameters"]["active"]),
        _bare(flops(record["flops_per_token"])),
        count(record["tokens"]),
        _bare(flops(record["total_flops"])),
        f"{record['world_size']:,}",
        size(record["memory"]["state_bytes_per_rank"]),
    )


def _bare(quantity: str) -> str:
    """Without the unit that the head of the column names."""
    return quantity.removesuffix("FLOP").replace(" ", "")


def _record(composed: Composed) -> dict[str, Any]:
    return {
        "overrides": list(composed.overrides),
        **plan_record(composed.config),
        "warnings": as_data(composed.config),
    }
