"""The plan of a sweep: each run, all of them together, and how they lie on a cluster."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3.commands import plan_lanes
from dsv3.commands.console import write, write_json, write_table
from dsv3.commands.lint import as_data
from dsv3.config.compose import Composed
from dsv3.lanes import Box, Lane
from dsv3.plan.cluster import Job, Placed, makespan_s, place
from dsv3.plan.quantities import count, duration, flops, plural, size
from dsv3.plan.record import plan_record
from dsv3.plan.setting import Setting

MOST_LANES = 24
HOURS = 3600.0
AXIS, KINDS = "days since the first run began", {"#": "a run"}
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


@dataclass(frozen=True)
class SweepPlan:
    """The plan of every run of a sweep on a cluster of `gpus` GPUs; names, records and jobs go
    with the runs.
    """

    runs: Sequence[Composed]
    names: Sequence[str]
    records: Sequence[dict[str, Any]]
    placed: Sequence[Placed]
    gpus: int
    setting: Setting

    @property
    def totals(self) -> dict[str, Any]:
        """Sums over all runs, and when each of them is on the cluster."""
        return _totals(self.records, self.placed, self.gpus)

    @property
    def lanes(self) -> list[Lane]:
        """A lane for each run, in days since the first began."""
        return _lanes(self.placed)

    @property
    def title(self) -> str:
        """What the timeline shows."""
        gpus = f"{self.gpus:,} {self.setting.hardware.gpu}"
        return f"{plural(len(self.runs), 'run')} on {gpus}, as planned"


def plan_sweep(runs: Sequence[Composed], setting: Setting) -> SweepPlan:
    """Plan all runs; every run must fit the cluster."""
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
    return SweepPlan(runs, names, records, place(jobs, gpus), gpus, setting)


def print_sweep(plan: SweepPlan, *, as_json: bool) -> None:
    """A row for each run, the totals, and a timeline."""
    if as_json:
        write_json({"runs": plan.records, "totals": plan.totals})
        return
    title = f"The plan of {len(plan.records)} runs on {plan.setting.hardware.gpu}"
    write_table(("run", *COLUMNS), sweep_rows(plan), title=title, numbers_from=1)
    _print_timeline(plan.placed, plan.gpus)


def draw_sweep(path: Path, plan: SweepPlan) -> None:
    """The timeline as an SVG; raises CapacityError if the file cannot be written."""
    plan_lanes.draw(path, plan.title, plan.lanes, axis=AXIS, kinds=KINDS)


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


def sweep_rows(plan: SweepPlan) -> list[tuple[str, ...]]:
    """A row for each run, and one for all; `COLUMNS` stand over all cells but the first."""
    rows = [
        (name, *_cells(record, plan.setting))
        for name, record in zip(plan.names, plan.records, strict=True)
    ]
    totals = plan.totals
    cost = totals["cost_usd"]
    all_runs = (
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
    return [*rows, all_runs]


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
