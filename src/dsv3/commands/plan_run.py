"""The plan of one run: what it is, what a rank needs, how long it takes, what to change."""

from typing import Any

from dsv3.commands.console import write, write_table
from dsv3.commands.lint import as_data
from dsv3.commands.plan_pipeline import pipeline_lines
from dsv3.config.compose import Composed
from dsv3.config.root import RunConfig
from dsv3.plan.advice import changes, enough
from dsv3.plan.description import describe_balance, describe_layout, describe_mtp
from dsv3.plan.peak import peak_memory
from dsv3.plan.quantities import count, duration, flops, plural, size
from dsv3.plan.record import plan_record
from dsv3.plan.setting import HEADROOM, Setting

STAGE_COLUMNS = ("stage", "at most", "in", "micro\nbatches", "of it")
ADVICE_COLUMNS = ("change", "saves", "leaves", "")
MOST_ROWS = 8
"""Kinds of stages that a table shows, the fullest ones."""


def run_record(composed: Composed, setting: Setting) -> dict[str, Any]:
    """The plan with what belongs to the command: overrides, warnings, advice."""
    record = plan_record(composed.config, setting)
    fits = fits_into(record, setting)
    return {
        "overrides": list(composed.overrides),
        **record,
        "fits": fits,
        "advice": [] if fits else advise(composed.config, setting),
        "warnings": as_data(composed.config),
    }


def print_run(composed: Composed, record: dict[str, Any], setting: Setting) -> None:
    """Tables for people."""
    write_table((), run_rows(composed, record), title=f"{record['model']}: the plan")
    write_table(
        STAGE_COLUMNS,
        stage_rows(record["memory"]["stages"]),
        title=f"Memory of a rank, MaxVio {setting.max_violation:g}: {verdict(record, setting)}",
    )
    if record["advice"]:
        write_table(ADVICE_COLUMNS, advice_rows(record["advice"]), title="What makes it smaller")
    for line in pipeline_lines(composed.config, setting, record["pipeline"]):
        write(line)


def run_rows(composed: Composed, record: dict[str, Any]) -> list[tuple[str, str]]:
    """What the run is and takes, as name and text."""
    parameters, time = record["parameters"], record["time"]
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
        ("of it", _shares(record["flops_per_token_by_part"])),
        ("MTP, beside", _mtp_line(composed, record["mtp"])),
        ("FLOPs in all", flops(record["total_flops"])),
        ("cache per token", f"{record['kv_cache_bytes_per_token']:,} B in BF16, at inference"),
        ("tokens", length),
        ("balance", describe_balance(composed.config.balance)),
        ("world size", f"{record['world_size']:,} ({layout})"),
        ("precision", record["precision"]),
        ("a step", _step_line(time)),
        ("the run", _run_line(record)),
        ("price", price(record["cost_usd"], record["hardware"])),
        (
            "disk",
            f"{size(record['disk']['total'])} (a checkpoint {size(record['disk']['checkpoint'])},"
            f" metrics {size(record['disk']['metrics'])})",
        ),
    ]


def price(usd: float | None, hardware: dict[str, Any]) -> str:
    """`$5.3M at $2 a GPU-hour`, or what to give."""
    if usd is None:
        return "unknown: give --usd-per-gpu-hour"
    return f"${count(usd)} at ${hardware['usd_per_gpu_hour']:g} a GPU-hour"


def _shares(parts: dict[str, int]) -> str:
    whole = sum(parts.values())
    ranked = sorted(parts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name.replace('_', ' ')} {part / whole:.1%}" for name, part in ranked)


def _step_line(time: dict[str, Any]) -> str:
    parts = {name: part for name, part in time["step"].items() if part > 0}
    shares = ", ".join(f"{name} {duration(part)}" for name, part in parts.items())
    return f"{duration(time['step_seconds'])} ({shares})"


def _run_line(record: dict[str, Any]) -> str:
    time, hardware = record["time"], record["hardware"]
    return (
        f"{duration(time['seconds'])} on {plural(record['world_size'], hardware['gpu'])}:"
        f" {count(record['gpu_hours'])} GPU-hours,"
        f" {count(time['tokens_per_second_per_gpu'])} tokens/s each,"
        f" {time['utilisation']:.1%} of the BF16 peak"
        f" (products at {hardware['efficiency']:.0%} of theirs, nothing overlaps)"
    )


def verdict(record: dict[str, Any], setting: Setting) -> str:
    """`46.0 GiB fits into 67.1 GiB, ...`."""
    memory = record["memory"]
    room = f"{size(setting.usable_bytes)}, {HEADROOM:.0%} of the memory of one"
    room += f" {setting.hardware.gpu}"
    fits = "fits into" if fits_into(record, setting) else "does not fit into"
    host = memory["host_bytes_per_rank"]
    beside = f"; {size(host)} of the host's beside" if host else ""
    return f"{size(memory['peak_bytes_per_rank'])} {fits} {room}{beside}"


def stage_rows(stages: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The fullest first; stages of the same bytes in one row, with the first one's batches."""
    alike: dict[str, list[dict[str, Any]]] = {}
    for stage in sorted(stages, key=lambda stage: (-stage["peak_bytes"], stage["stage"])):
        alike.setdefault(f"{stage['peak_bytes']} {stage['parts']}", []).append(stage)
    groups = list(alike.values())
    rows: list[tuple[str, ...]] = [
        (
            ranges([stage["stage"] for stage in group]),
            size(group[0]["peak_bytes"]),
            group[0]["moment"],
            " + ".join(map(str, group[0]["micro_batches"])),
            ", ".join(f"{name} {size(part)}" for name, part in group[0]["parts"].items()),
        )
        for group in groups[:MOST_ROWS]
    ]
    if len(groups) > MOST_ROWS:
        rest = [stage["stage"] for group in groups[MOST_ROWS:] for stage in group]
        rows.append((ranges(sorted(rest)), "less", "", "", ""))
    return rows


def ranges(numbers: list[int]) -> str:
    """`0, 3 to 15`: rising numbers, neighbours together."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in found)


def fits_into(record: dict[str, Any], setting: Setting) -> bool:
    """Whether a rank's peak fits into what a plan may fill."""
    peak: int = record["memory"]["peak_bytes_per_rank"]
    return peak <= setting.usable_bytes


def advise(config: RunConfig, setting: Setting) -> list[dict[str, Any]]:
    """Single changes, then what suffices together."""

    def peak(changed: RunConfig) -> int:
        return peak_memory(changed, max_violation=setting.max_violation).bytes_per_rank

    limit = setting.usable_bytes
    found: list[dict[str, Any]] = [
        {
            "override": change.override,
            "saves_bytes": change.saves_bytes,
            "peak_bytes": change.peak_bytes,
            "fits": change.peak_bytes <= limit,
        }
        for change in changes(config, peak)
    ]
    if not any(each["fits"] for each in found) and (together := enough(config, peak, limit)):
        found.append({"override": " ".join(together), "fits": True})
    return found


def advice_rows(advice: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row of `ADVICE_COLUMNS` for each change."""
    return [
        (
            each["override"],
            size(each["saves_bytes"]) if "saves_bytes" in each else "",
            size(each["peak_bytes"]) if "peak_bytes" in each else "",
            "fits" if each["fits"] else "",
        )
        for each in advice
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
