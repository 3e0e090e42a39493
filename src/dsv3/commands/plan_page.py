"""The plan as a page: what a run or a sweep takes, made of the report's blocks."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dsv3 import lanes, picture
from dsv3.commands import plan_pipeline as pipeline
from dsv3.commands.plan_lanes import write_file
from dsv3.commands.plan_run import advise, fits_into, run_rows, verdict
from dsv3.commands.plan_search import COLUMNS as SEARCH_COLUMNS
from dsv3.commands.plan_search import search_rows, search_title
from dsv3.commands.plan_sweep import AXIS, COLUMNS, KINDS, SweepPlan, sweep_rows
from dsv3.commands.plan_tables import (
    advice_table,
    assumptions,
    bubble_table,
    flat,
    stage_table,
    step_table,
)
from dsv3.config.compose import Composed
from dsv3.plan.quantities import count, duration, plural, size
from dsv3.plan.search import Found
from dsv3.plan.setting import Setting
from dsv3.redaction import redact
from dsv3.report.blocks import Block, Details, Figure, Items, Page, Section, Table, Text
from dsv3.report.html import html

Advice = list[dict[str, Any]]

MOST_NAMES = 4
"""Runs that the head of a fold names."""
NAMES = ("overrides", "warnings")
"""Of a record, what may differ between runs whose details are told once."""
NOT_COUNTED = "Input, evaluation, checkpoints and restarts are in no time, nor is a wait for GPUs."


def write_page(path: Path, page: Page) -> None:
    """Write the page whole; raises CapacityError if the file cannot be written."""
    write_file(path, html(page), option="--html", what="the plan is written to")


def run_page(composed: Composed, record: dict[str, Any], setting: Setting) -> Page:
    """One run: whether it fits and what would make it, what it takes, its step."""
    config, gpu = composed.config, setting.hardware.gpu
    lead = (
        f"{record['model']} takes {duration(record['time']['seconds'])} on"
        f" {_gpus(record['world_size'], gpu)}: {count(record['gpu_hours'])} GPU-hours"
        f"{_dollars(record['cost_usd'])}, {size(record['disk']['total'])} of disk."
    )
    fit: list[Block] = [Text(f"Memory of a rank: {verdict(record, setting)}.")]
    if record["advice"]:
        fit.append(advice_table("advice", record["advice"]))
    plan: list[Block] = [Table("plan", "The run", ("", ""), tuple(run_rows(composed, record)), 2)]
    if composed.overrides:
        asked = redact(" ".join(composed.overrides))
        plan.append(Text(f"Asked for: {asked}"))
    step: list[Block] = [step_table("step", record["time"])]
    if record["pipeline"]:
        step += [bubble_table(record["pipeline"]), _pipeline_figure(composed, setting)]
    warnings = tuple(
        f"{each['setting']}: {each['reason']}; {each['remedy']}" for each in record["warnings"]
    )
    sections = (
        Section("fit", "Does it fit?", tuple(fit)),
        Section("plan", "The run", tuple(plan)),
        Section("memory", "Memory of a rank", (stage_table("stages", record, setting),)),
        Section("step", "A step", tuple(step)),
        Section("warnings", "Known traps", (Items(warnings, named=True),) if warnings else ()),
        Section("assumptions", "What this assumes", (*assumptions(setting), Text(NOT_COUNTED))),
    )
    shown = tuple(section for section in sections if section.blocks)
    return Page(f"The plan of {config.model.name} on {gpu}", lead, shown)


def sweep_page(plan: SweepPlan) -> Page:
    """A sweep: what all runs take, each of them, when they run, and the details of each kind."""
    totals, setting = plan.totals, plan.setting
    gpu = setting.hardware.gpu
    runs = plural(totals["runs"], "run")
    lead = (
        f"{runs} take {count(totals['gpu_hours'])} GPU-hours:"
        f" {duration(totals['days'] * 86400)} on {_gpus(totals['gpus'], gpu)}"
        f"{_dollars(totals['cost_usd'])}, {size(totals['disk_bytes'])} of disk."
    )
    rows = tuple((flat(redact(row[0])), *row[1:]) for row in sweep_rows(plan))
    caption = f"Each run by itself on {gpu}, and all of them. ! marks a peak that does not fit."
    table = Table("runs", caption, _heads("run", *COLUMNS), rows, dense=True)
    kinds = _kinds(plan)
    advice = [_advice(plan, kind) for kind in kinds]
    sections = (
        Section("fit", "Do they fit?", _fit(plan, kinds, advice)),
        Section("runs", "The runs", (table,)),
        Section("timeline", "When they run", _timeline(plan)),
        Section("details", "Each run", tuple(_details(plan, kinds, advice))),
        Section("assumptions", "What this assumes", (*assumptions(setting), Text(NOT_COUNTED))),
    )
    return Page(f"The plan of {runs} on {gpu}", lead, sections)


def search_page(found: Sequence[Found], setting: Setting) -> Page:
    """The layouts of a search, with the words that choose each."""
    title, best = search_title(found, setting), found[0]
    lead = (
        f"The fastest of {plural(len(found), 'layout')} that fit takes {duration(best.step.total)}"
        f" a step, {best.hours / 24:,.1f} days on {_gpus(setting.gpus or 0, setting.hardware.gpu)}."
    )
    rows = tuple(tuple(map(flat, row)) for row in search_rows(found))
    table = Table("layouts", title, _heads(*SEARCH_COLUMNS), rows, 6)
    words = tuple(f"{number}: {each.override_line}" for number, each in enumerate(found, start=1))
    sections = (
        Section("layouts", "Layouts that fit", (table,)),
        Section("words", "The words that choose them", (Items(words, named=True),)),
        Section("assumptions", "What this assumes", (*assumptions(setting), Text(NOT_COUNTED))),
    )
    return Page(title.partition(":")[0], lead, sections)


def _fit(
    plan: SweepPlan, kinds: Sequence[Sequence[int]], advice: Sequence[Advice]
) -> tuple[Block, ...]:
    """One sentence, and the runs that do not fit with what would make them."""
    small = [
        (kind, changes)
        for kind, changes in zip(kinds, advice, strict=True)
        if not fits_into(plan.records[kind[0]], plan.setting)
    ]
    if not small:
        room = f"{size(plan.setting.usable_bytes)} that a plan may fill of a"
        return (Text(f"Every run fits into the {room} {plan.setting.hardware.gpu}."),)
    number, of = sum(len(kind) for kind, _ in small), len(plan.records)
    items = tuple(
        f"{_named(plan, kind)}: {verdict(plan.records[kind[0]], plan.setting)}; {_remedy(changes)}"
        for kind, changes in small
    )
    return (Text(f"{number} of {plural(of, 'run')} would not fit:"), Items(items, named=True))


def _advice(plan: SweepPlan, kind: Sequence[int]) -> Advice:
    first = kind[0]
    if fits_into(plan.records[first], plan.setting):
        return []
    return advise(plan.runs[first].config, plan.setting)


def _remedy(advice: Advice) -> str:
    """`recompute=full makes it fit`: the first single change that does, or all of them together."""
    enough = next((each["override"] for each in advice if each["fits"]), None)
    return "no change that is tried is enough" if enough is None else f"{enough} makes it fit"


def _timeline(plan: SweepPlan) -> tuple[Block, ...]:
    """Every run on the cluster; of many the first ones."""
    shown = [lane._replace(name=redact(lane.name)) for lane in plan.lanes[: lanes.MOST_DRAWN]]
    busy = plan.totals["busy"]
    caption = (
        f"Each run starts as soon as those before it leave room on {plural(plan.gpus, 'GPU')},"
        f" which are busy {busy:.0%} of the time; numbers are the GPUs of a run."
    )
    if len(shown) < len(plan.records):
        caption += f" The first {len(shown)} of {plural(len(plan.records), 'run')} are drawn."
    description = "; ".join(
        f"{lane.name}: day {lane.boxes[0].start:.1f} to {lane.boxes[0].end:.1f}" for lane in shown
    )
    svg = lanes.svg("timeline", plan.title, shown, axis=AXIS, kinds=KINDS, description=description)
    return (Figure("timeline", caption, description, svg, wide=True),)


def _details(
    plan: SweepPlan, kinds: Sequence[Sequence[int]], advice: Sequence[Advice]
) -> Iterable[Details]:
    """Folded, once for runs that differ in nothing a plan counts."""
    for kind, changes in zip(kinds, advice, strict=True):
        first = kind[0]
        record, composed = plan.records[first], plan.runs[first]
        blocks = [
            Table(f"run-{first}", "The run", ("", ""), tuple(run_rows(composed, record)), 2),
            stage_table(f"stages-{first}", record, plan.setting),
            step_table(f"step-{first}", record["time"]),
        ]
        if changes:
            blocks.append(advice_table(f"advice-{first}", changes))
        yield Details(_named(plan, kind), tuple(blocks))


def _kinds(plan: SweepPlan) -> list[list[int]]:
    """Numbers of the runs, those together whose plans differ in names only."""
    found: dict[str, list[int]] = {}
    for number, record in enumerate(plan.records):
        same = json.dumps({k: v for k, v in record.items() if k not in NAMES}, sort_keys=True)
        found.setdefault(same, []).append(number)
    return list(found.values())


def _named(plan: SweepPlan, kind: Sequence[int]) -> str:
    names = [flat(redact(plan.names[number])) or "the run" for number in kind]
    more = f"; and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return "; ".join(names[:MOST_NAMES]) + more


def _pipeline_figure(composed: Composed, setting: Setting) -> Figure:
    config = composed.config
    title = pipeline.pipeline_title(config, setting)
    drawn = lanes.svg(
        "pipeline",
        title,
        pipeline.pipeline_lanes(config, setting),
        axis=pipeline.AXIS,
        kinds=pipeline.kinds_of(config),
        description=title,
    )
    caption = f"{picture.plain(title)}: what each stage does when; grey is idle."
    return Figure("pipeline", caption, title, drawn, wide=True)


def _heads(*columns: str) -> tuple[str, ...]:
    return tuple(map(flat, columns))


def _gpus(number: int, gpu: str) -> str:
    return f"{number:,} {gpu}"


def _dollars(usd: float | None) -> str:
    return "" if usd is None else f", ${count(usd)}"
