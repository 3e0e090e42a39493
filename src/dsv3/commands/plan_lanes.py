"""Lanes over an axis of time, as text and as SVG: ranks of a pipeline, runs on a cluster."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dsv3 import picture
from dsv3.commands.console import note
from dsv3.files import storage_error, write_atomically

WIDTH, LANE_HEIGHT, AROUND = 14.0, 0.34, 1.9
SMALLEST_LABEL = 0.012
"""Share of the width from which on a box has room for its text."""
TEXT_COLUMNS = 100
IDLE = "."


class Box(NamedTuple):
    """Something done in a lane, in the axis' unit; `kind` says how it looks."""

    kind: str
    start: float
    end: float
    label: str = ""


class Lane(NamedTuple):
    """A row."""

    name: str
    boxes: Sequence[Box]


def text(lanes: Sequence[Lane], columns: int = TEXT_COLUMNS) -> list[str]:
    """A line for each lane: at each place the first letter of the kind that fills most of it."""
    end = max(box.end for lane in lanes for box in lane.boxes)
    widest = max(len(lane.name) for lane in lanes)
    return [f"{lane.name:>{widest}} {_line(lane.boxes, end, columns)}" for lane in lanes]


def _line(boxes: Sequence[Box], end: float, columns: int) -> str:
    middles = [(column + 0.5) * end / columns for column in range(columns)]
    return "".join(
        next((box.kind[0] for box in boxes if box.start <= at < box.end), IDLE) for at in middles
    )


def draw(
    path: Path, title: str, lanes: Sequence[Lane], *, axis: str, kinds: Mapping[str, str]
) -> None:
    """Write the lanes into an SVG; `kinds` names each kind for the legend, in its order.

    Raises CapacityError if the file cannot be written.
    """
    image = svg(title, lanes, axis=axis, kinds=kinds).encode()
    try:
        write_atomically(path, image)
    except OSError as error:
        raise storage_error(f"--svg {path}", error, "name a file that can be written") from error
    note(f"the timeline is drawn in {path}")


def svg(title: str, lanes: Sequence[Lane], *, axis: str, kinds: Mapping[str, str]) -> str:
    """The lanes as a file of its own; the same text for the same lanes."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colours = dict(zip(kinds, picture.SERIES, strict=False))
    height = LANE_HEIGHT * len(lanes) + AROUND
    end = max(box.end for lane in lanes for box in lane.boxes)
    with picture.drawing():
        figure = Figure(figsize=(WIDTH, height))
        ax = figure.subplots()
        figure.subplots_adjust(left=0.17, right=0.985, top=1 - 0.95 / height, bottom=0.6 / height)
        figure.suptitle(title, x=0.17, y=1 - 0.2 / height, ha="left", fontsize=13, weight="bold")
        for row, lane in enumerate(lanes):
            ax.broken_barh([(0, end)], (row - 0.4, 0.8), facecolor=picture.SHADE)
            for kind, colour in colours.items():
                spans = [(b.start, b.end - b.start) for b in lane.boxes if b.kind == kind]
                ax.broken_barh(
                    spans,
                    (row - 0.4, 0.8),
                    facecolor=colour,
                    edgecolor=picture.PAPER,
                    linewidth=0.4,
                )
            for box in lane.boxes:
                if box.label and box.end - box.start >= SMALLEST_LABEL * end:
                    middle = (box.start + box.end) / 2
                    ax.annotate(
                        box.label,
                        (middle, row),
                        ha="center",
                        va="center",
                        fontsize=7.5,
                        color=picture.PAPER,
                    )
        ax.set_xlim(0, end)
        ax.set_ylim(len(lanes) - 0.5, -0.5)
        names = [picture.plain(lane.name, 34) for lane in lanes]
        ax.set_yticks(range(len(lanes)), names, fontsize=9)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel(axis)
        for side in ("top", "right", "left"):
            ax.spines[side].set_visible(False)
        ax.legend(
            handles=[Patch(color=colour, label=kinds[kind]) for kind, colour in colours.items()],
            loc="lower left",
            bbox_to_anchor=(-0.005, 1.0),
            ncols=len(colours),
            frameon=False,
            fontsize=9,
        )
        return picture.standalone(picture.svg(figure, "lanes", title))


def terminal_columns() -> int:
    """Room for lanes beside their names."""
    import shutil

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else TEXT_COLUMNS + 20
    return max(20, min(TEXT_COLUMNS, width - 20))
