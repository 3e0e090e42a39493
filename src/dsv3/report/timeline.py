"""When the runs of a study ran: a lane for each, a box for each attempt."""

from datetime import datetime

from dsv3 import lanes, picture
from dsv3.lanes import Box, Lane
from dsv3.plan.quantities import plural
from dsv3.report.blocks import Figure
from dsv3.report.study import Spell, Study, StudyRun

KINDS = {
    "finished": "to the end",
    "stopped": "saved and stopped",
    "failed": "failed",
    "lost": "lost, to its last sign",
    "running": "running, to its last sign",
}
HOUR = 3600.0
SHORTEST_IN_HOURS = 2 * HOUR


def timeline(study: Study) -> Figure | None:
    """The figure; None if no run has begun, or none says when."""
    having = [run for run in study.runs if run.spells]
    if not having:
        return None
    begin = min(run.spells[0].begin for run in having)
    end = max(spell.end for run in having for spell in run.spells)
    whole = (end - begin).total_seconds()
    shown = having[: lanes.MOST_DRAWN]
    unit_s, unit = (HOUR, "hours") if whole >= SHORTEST_IN_HOURS else (60.0, "minutes")
    drawn = [_lane(run, begin, unit_s) for run in shown]
    if lanes.end_of(drawn) <= 0:
        return None
    used = {box.kind for lane in drawn for box in lane.boxes}
    kinds = {kind: name for kind, name in KINDS.items() if kind in used}
    caption = "When each run trained, from the start of its steps; numbers are attempts."
    if len(shown) < len(having):
        caption += f" The first {len(shown)} of {plural(len(having), 'run')} are shown."
    description = "; ".join(_in_words(run, begin, unit_s, unit) for run in shown)
    title = f"{picture.plain(study.record.name)}: when its runs ran"
    axis = f"{unit} since the first began"
    svg = lanes.svg("runs", title, drawn, axis=axis, kinds=kinds, description=description)
    return Figure("runs", caption, description, svg, wide=True)


def _lane(run: StudyRun, begin: datetime, unit_s: float) -> Lane:
    several = len(run.spells) > 1
    boxes = [
        Box(
            spell.ending,
            *_span(spell, begin, unit_s),
            label=str(spell.attempt) if several else "",
        )
        for spell in run.spells
    ]
    return Lane(_name(run), boxes)


def _span(spell: Spell, begin: datetime, unit_s: float) -> tuple[float, float]:
    start, end = ((at - begin).total_seconds() / unit_s for at in (spell.begin, spell.end))
    return start, end


def _in_words(run: StudyRun, begin: datetime, unit_s: float, unit: str) -> str:
    """`aux_free, seed 1: 0.0 to 3.2 hours (stopped), 3.5 to 6.1 hours (finished)`."""
    said = []
    for spell in run.spells:
        start, end = _span(spell, begin, unit_s)
        said.append(f"{start:.1f} to {end:.1f} {unit} ({spell.ending})")
    return f"{_name(run)}: {', '.join(said)}"


def _name(run: StudyRun) -> str:
    return f"{run.arm}, seed {run.seed}"
