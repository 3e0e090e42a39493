"""Lanes over an axis of time, drawn: ranks of a pipeline, runs on a cluster, attempts of runs."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dsv3 import picture

WIDTH, LANE_HEIGHT, AROUND = 14.0, 0.34, 1.9
SMALLEST_LABEL = 0.012
"""Share of the width from which on a box has room for its text."""
LONGEST_NAME = 34
MOST_DRAWN = 60
"""Lanes of a picture in a page; of more the first are shown."""


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


def end_of(lanes: Sequence[Lane]) -> float:
    """Where the last box ends."""
    return max(box.end for lane in lanes for box in lane.boxes)


def svg(
    name: str,
    title: str,
    lanes: Sequence[Lane],
    *,
    axis: str,
    kinds: Mapping[str, str],
    description: str = "",
) -> str:
    """The lanes as an `<svg>` element; the same text for the same lanes.

    `kinds` names each kind for the legend, in its order; `name` and `description` are those of
    `picture.svg`. There is a box, and the last one ends after 0.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colours = dict(zip(kinds, picture.SERIES, strict=False))
    height, end = LANE_HEIGHT * len(lanes) + AROUND, end_of(lanes)
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
        names = [picture.plain(lane.name, LONGEST_NAME) for lane in lanes]
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
        return picture.svg(figure, name, title, description)
