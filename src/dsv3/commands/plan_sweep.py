"""The plan of a sweep: each run, all of them together, and how they lie on a cluster."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsv3.commands import plan_lanes
from dsv3.commands.console import write, write_json, write_table
from dsv3.commands.lint import as_data
from dsv3.commands.plan_lanes import Box, Lane
from dsv3.config.compose import Composed
from dsv3.plan.cluster import Job, Placed, makespan_s, place
from dsv3.plan.quantities import count, duration, flops, plural, size
from dsv3.plan.record import plan_record
from dsv3.plan.setting import Setting

MOST_LANES = 24
HOURS = 3600.0
COLUMNS = (
    "total",
    "active",
    "FLOPs\nper token",
    "tokens",
    "FLOPs",
    "ranks",
    "peak\nper rank",
    "time",
    "GPU-hours",
    "$",
    "disk",
)


def print_sweep(
    runs: Sequence[Composed], setting: Setting, *, svg: Path | None, as_json: bool
) -> None:
    """A row for each run, the totals, and a timeline; every run must fit the cluster."""
    records = [
        {
            "overrides": list(run.overrides),
            **plan_record(run.config, setting),
            "warnings": as_data(run.config),
        }
        for run in runs
    ]
    names = _names(records)
    jobs = [
        Job(name, record["world_size"], record["time"]["seconds"])
        for name, record in zip(names, records, strict=True)
    ]
    gpus = setting.gpus or max(job.ranks for job in jobs)
    placed = place(jobs, gpus)
    totals = _totals(records, placed, gpus)
    if as_json:
        write_json({"runs": records, "totals": totals})
    else:
        _print(names, records, totals, setting)
        _print_timeline(placed, gpus)
    if svg is not None:
        title = f"{plural(len(runs), 'run')} on {gpus:,} {setting.hardware.gpu}, as planned"
        lanes, kinds = _lanes(placed), {"#": "a run"}
        plan_lanes.draw(svg, title, lanes, axis="days since the first run began", kinds=kinds)


def _names(records: Sequence[dict[str, Any]]) -> list[str]:
    """What sets each run apart."""
    shared = set.intersection(*(set(record["overrides"]) for record in records))
    found = []
    for record in records:
        differs = [override for override in record["overrides"] if override not in shared]
        found.append("\n".join(differs or record["overrides"]))
    return found


def _totals(
    records: Sequence[dict[str, Any]], placed: Sequence[Placed], gpus: int
) -> dict[str, Any]:
    costs = [record["cost_usd"] for record in records]
    seconds = makespan_s(placed)
    hours = sum(record["gpu_hours"] for record in records)
    return {
        "runs": len(records),
        "tokens": sum(record["tokens"] for record in records),
        "flops": sum(record["total_flops"] for record in records),
        "gpu_hours": hours,
        "cost_usd": None if None in costs else sum(costs),
        "disk_bytes": sum(record["disk"]["total"] for record in records),
        "gpus": gpus,
        "days": seconds / HOURS / 24,
        "busy": hours * HOURS / (gpus * seconds),
        "starts": [
            {"start_days": each.start_s / HOURS / 24, "end_days": each.end_s / HOURS / 24}
            for each in placed
        ],
    }


def _print(
    names: Sequence[str],
    records: Sequence[dict[str, Any]],
    totals: dict[str, Any],
    setting: Setting,
) -> None:
    rows = [(name, *_cells(record, setting)) for name, record in zip(names, records, strict=True)]
    cost = totals["cost_usd"]
    rows.append(
        (
            "all runs",
            *("", "", ""),
            count(totals["tokens"]),
            _bare(flops(totals["flops"])),
            f"{totals['gpus']:,}",
            "",
            duration(totals["days"] * 24 * HOURS),
            count(totals["gpu_hours"]),
            "" if cost is None else count(cost),
            size(totals["disk_bytes"]),
        )
    )
    title = f"The plan of {len(records)} runs on {setting.hardware.gpu}"
    write_table(("run", *COLUMNS), rows, title=title, numbers_from=1)


def _cells(record: dict[str, Any], setting: Setting) -> tuple[str, ...]:
    peak = record["memory"]["peak_bytes_per_rank"]
    cost = record["cost_usd"]
    return (
        count(record["parameters"]["total"]),
        count(record["parameters"]["active"]),
        _bare(flops(record["flops_per_token"])),
        count(record["tokens"]),
        _bare(flops(record["total_flops"])),
        f"{record['world_size']:,}",
        size(peak) + ("" if peak <= setting.usable_bytes else " !"),
        duration(record["time"]["seconds"]),
        count(record["gpu_hours"]),
        "" if cost is None else count(cost),
        size(record["disk"]["total"]),
    )


def _print_timeline(placed: Sequence[Placed], gpus: int) -> None:
    write(f"on {plural(gpus, 'GPU')}, each run as soon as those before it leave room:")
    shown = _lanes(placed[:MOST_LANES])
    for line in plan_lanes.text(shown, plan_lanes.terminal_columns()):
        write(line)
    if len(placed) > MOST_LANES:
        write(f"and {len(placed) - MOST_LANES} more")


def _lanes(placed: Sequence[Placed]) -> list[Lane]:
    days = HOURS * 24
    return [
        Lane(
            each.job.name.replace("\n", " "),
            [Box("#", each.start_s / days, each.end_s / days, f"{each.job.ranks:,}")],
        )
        for each in placed
    ]


def _bare(quantity: str) -> str:
    """Without the unit that the head of the column names."""
    return quantity.removesuffix("FLOP").replace(" ", "")
