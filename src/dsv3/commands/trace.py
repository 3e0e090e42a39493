"""`dsv3 plan --trace`: the program of every stage, run without data, and the bytes it takes."""

from collections.abc import Sequence
from typing import Any

from dsv3.commands.console import write, write_json, write_table
from dsv3.config.compose import Composed
from dsv3.errors import ConfigError, Problem
from dsv3.plan.description import describe_layout
from dsv3.plan.quantities import count, size


def print_trace(runs: Sequence[Composed], *, max_violation: float, as_json: bool) -> int:
    """Print the trace of one configuration; returns 0.

    Raises ConfigError for several.
    """
    if len(runs) > 1:
        rule = f"a trace is of one configuration, these are {len(runs)}"
        raise ConfigError(Problem("--trace", rule, "name one run, without -m and recipe="))
    from dsv3.train.trace_record import trace_record

    config = runs[0].config
    record = trace_record(config, max_violation=max_violation)
    if as_json:
        write_json({"overrides": list(runs[0].overrides), **record})
        return 0
    _print_stages(record, describe_layout(config.parallelism))
    _print_fullest(record)
    return 0


def _print_stages(record: dict[str, Any], layout: str) -> None:
    loads = record["loads"]
    sequences, length = record["micro_batch_shape"]
    columns = ["stage", "layers", "moment of the peak", "under way"]
    first_number = len(columns)
    columns += ["parameters", "state", "kept by a\nmicro batch"]
    columns += [f"peak,\nMaxVio {load['max_violation']:g}" for load in loads]
    rows = []
    for stages in zip(*(load["stages"] for load in loads), strict=True):
        last = stages[-1]
        rows.append(
            (
                str(last["stage"]),
                ", ".join(f"{begin}-{end - 1}" for begin, end in last["layers"]),
                last["moment"],
                " + ".join(map(str, last["micro_batches_under_way"])),
                count(last["parameters"]),
                size(last["state_bytes"]),
                " + ".join(size(kept) for kept in last["kept_bytes_per_micro_batch"]),
                *(size(stage["peak_bytes"]) for stage in stages),
            )
        )
    title = (
        f"{record['model']}: a rank of each stage, traced for {record['device']};"
        f" {record['world_size']:,} ranks ({layout}), {record['precision']},"
        f" micro batches of {sequences} x {length:,} tokens, {record['micro_batches']:,} a step"
    )
    write_table(columns, rows, title=title, numbers_from=first_number)


def _print_fullest(record: dict[str, Any]) -> None:
    load = record["loads"][-1]
    stage = load["stages"][load["fullest_stage"]]
    parts = sorted(stage["at_peak"].items(), key=lambda item: -item[1])
    title = f"Stage {stage['stage']} at its peak (MaxVio {load['max_violation']:g})"
    write_table((), [(name, size(of)) for name, of in parts], title=title)
    rows = [
        (
            live["operation"].removesuffix(".default"),
            " x ".join(map(str, live["shape"])),
            live["dtype"],
            size(live["bytes"]),
            f"{live['count']:,}",
            size(live["bytes"] * live["count"]),
        )
        for live in stage["largest"]
    ]
    columns = ("made by", "shape", "type", "each", "alive", "together")
    write_table(columns, rows, title="The largest of it, besides the state", numbers_from=3)
    if record["stand_ins"] is not None:
        write(record["stand_ins"])
