"""Parts of a plan as tables of a page: memory, a step, advice, bubbles, assumptions."""

from collections.abc import Sequence
from typing import Any

from dsv3.commands.plan_pipeline import METHODS
from dsv3.commands.plan_run import (
    ADVICE_COLUMNS,
    STAGE_COLUMNS,
    advice_rows,
    stage_rows,
    verdict,
)
from dsv3.config.hardware import RATES
from dsv3.plan.quantities import duration, size
from dsv3.plan.setting import HEADROOM, Setting
from dsv3.report.blocks import Block, Items, Table

RATE_NAMES = {
    "bf16_flops": "dense BF16 products",
    "fp8_flops": "dense FP8 products",
    "memory_bytes_per_s": "memory",
    "node_bytes_per_s": "links within a node, a GPU and direction",
    "network_bytes_per_s": "links between nodes, a GPU and direction",
}


def stage_table(name: str, record: dict[str, Any], setting: Setting) -> Table:
    """Peak memory of each kind of stage, the fullest first."""
    caption = (
        f"Memory of a rank at its fullest, MaxVio {setting.max_violation:g}:"
        f" {verdict(record, setting)}"
    )
    columns = tuple(map(flat, STAGE_COLUMNS))
    return Table(name, caption, columns, tuple(stage_rows(record["memory"]["stages"])), 1, 2)


def step_table(name: str, time: dict[str, Any]) -> Table:
    """What a step of full size consists of."""
    whole = time["step_seconds"]
    parts = [
        (part, duration(seconds), f"{seconds / whole:.1%}")
        for part, seconds in time["step"].items()
        if seconds > 0
    ]
    rows = (*parts, ("all of it", duration(whole), ""))
    caption = (
        "A step of full size, by what the busiest rank does; the run as a whole reaches"
        f" {time['utilisation']:.1%} of the BF16 peak"
    )
    return Table(name, caption, ("part", "time", "share"), rows)


def advice_table(name: str, advice: Sequence[dict[str, Any]]) -> Table:
    """Changes that leave the experiment what it is."""
    rows = tuple(advice_rows(list(advice)))
    return Table(name, "What makes it smaller", ADVICE_COLUMNS, rows, 1, 3)


def bubble_table(methods: Sequence[dict[str, Any]]) -> Table:
    """How long a rank idles in a step under each method of the report's table 2."""
    rows = tuple(
        (
            METHODS[each["method"]],
            duration(each["bubble_seconds"]),
            f"{each['parameters']}",
            f"{each['micro_batches_kept']}",
        )
        for each in methods
    )
    caption = "Pipeline methods (table 2 of the report) with the chunk times of this run"
    columns = ("method", "bubble of a step", "copies of parameters", "micro batches kept")
    return Table("bubbles", caption, columns, rows)


def assumptions(setting: Setting) -> tuple[Block, ...]:
    """The machine with its sources, the load and the price."""
    hardware = setting.hardware
    rows = [
        (
            "GPU",
            f"{hardware.gpu}, {hardware.gpus_per_node} in a node",
            f"profile {setting.name}",
        ),
        (
            "memory of a GPU",
            f"{size(hardware.memory_bytes)}, of which a plan fills {HEADROOM:.0%}",
            "the context, buffers of communication and fragmentation are in no count",
        ),
        *(_rate_row(setting, name) for name in RATES),
        (
            "products reach",
            f"{hardware.efficiency:.0%} of a published peak",
            hardware.sources.get("efficiency", ""),
        ),
        (
            "load of the busiest rank",
            f"MaxVio {setting.max_violation:g}: {1 + setting.max_violation:g} times the mean",
            "for memory; time is reckoned with an even load",
        ),
        _price_row(setting),
    ]
    table = Table("assumptions", "Assumptions", ("", "value", "from"), tuple(rows), 3)
    sources = tuple(f"{what}: {source}" for what, source in hardware.sources.items())
    return (table, Items(sources, named=True)) if sources else (table,)


def flat(text: str) -> str:
    """One line: names and heads are folded for a terminal."""
    return text.replace("\n", " ")


def _price_row(setting: Setting) -> tuple[str, str, str]:
    if setting.price is None:
        return "price", "unknown", "give --usd-per-gpu-hour"
    given = setting.usd_per_gpu_hour is not None
    where = "--usd-per-gpu-hour" if given else f"profile {setting.name}"
    return "price", f"${setting.price:g} a GPU-hour", where


def _rate_row(setting: Setting, name: str) -> tuple[str, str, str]:
    hardware = setting.hardware
    published = _rate(name, getattr(hardware, name))
    if name not in hardware.measured:
        return RATE_NAMES[name], published, "published"
    return (
        RATE_NAMES[name],
        _rate(name, hardware.measured[name]),
        f"measured; {published} published",
    )


def _rate(name: str, value: float) -> str:
    if name.endswith("_flops"):
        return f"{value / 1e12:,.5g} TFLOP/s"
    return f"{value / 1e9:,.5g} GB/s"
