"""A recorded step as one SVG: a lane for each rank, and where a lane is empty the rank is idle."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dsv3 import picture
from dsv3.parallel.spans import Span
from dsv3.train.timeline_figures import Lane

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, LANE_HEIGHT, AROUND = 14.0, 0.42, 1.75
SMALLEST_LABEL = 0.010
"""Share of the step's width from which on a box has room for the number of its micro batch."""


class Kind(NamedTuple):
    """What is drawn alike; thin ones lie at the foot of what they are part of."""

    label: str
    colour: str
    thin: bool = False


KINDS: dict[tuple[str, int], Kind] = {
    ("forward", 0): Kind("forward", picture.SERIES[0]),
    ("forward", 1): Kind("forward, second part", picture.FAINT[0]),
    ("backward", 0): Kind("backward", picture.SERIES[1]),
    ("backward", 1): Kind("backward, second part", picture.FAINT[1]),
    ("optimizer", 0): Kind("optimizer", picture.SERIES[2]),
    ("other", 0): Kind("other", picture.SERIES[3]),
    ("all_to_all", 0): Kind("all-to-all", picture.INK, thin=True),
}
"""By category and part; a wait is not drawn: the rank is idle."""


def draw(title: str, lanes: Sequence[Lane]) -> str:
    """The lanes in the order of the ranks, over milliseconds; the same text for the same spans."""
    from matplotlib.figure import Figure

    height = LANE_HEIGHT * len(lanes) + AROUND
    end_ms = max(span.end_s for lane in lanes for span in lane.spans) * 1e3
    with picture.drawing():
        figure = Figure(figsize=(WIDTH, height))
        ax = figure.subplots()
        figure.subplots_adjust(left=0.09, right=0.985, top=1 - 0.85 / height, bottom=0.6 / height)
        figure.suptitle(title, x=0.09, y=1 - 0.2 / height, ha="left", fontsize=13, weight="bold")
        drawn: set[tuple[str, int]] = set()
        for row, lane in enumerate(lanes):
            ax.broken_barh([(0, end_ms)], (row - 0.4, 0.8), facecolor=picture.SHADE)
            drawn |= _lane(ax, row, lane, end_ms)
        _frame(ax, lanes, end_ms)
        _legend(ax, drawn)
        return picture.standalone(picture.svg(figure, "timeline", title))


def _lane(ax: "Axes", row: int, lane: Lane, end_ms: float) -> set[tuple[str, int]]:
    """The boxes of a rank; which kinds there were."""
    found: dict[tuple[str, int], list[Span]] = {}
    for span in lane.spans:
        found.setdefault((span.category, span.args.get("part", 0)), []).append(span)
    for key, kind in KINDS.items():
        boxes = [_box(span) for span in found.get(key, [])]
        bottom, height = (row + 0.2, 0.2) if kind.thin else (row - 0.4, 0.8)
        edge: dict[str, Any] = {} if kind.thin else {"edgecolor": picture.PAPER, "linewidth": 0.5}
        ax.broken_barh(boxes, (bottom, height), facecolor=kind.colour, **edge)
    for span in lane.passes:
        start_ms, length_ms = _box(span)
        if length_ms >= SMALLEST_LABEL * end_ms:
            at = (start_ms + length_ms / 2, row - 0.08)
            number = str(span.args["micro_batch"])
            ax.annotate(number, at, ha="center", va="center", fontsize=7.5, color=picture.PAPER)
    return found.keys() & KINDS.keys()


def _frame(ax: "Axes", lanes: Sequence[Lane], end_ms: float) -> None:
    ax.set_xlim(0, end_ms)
    ax.set_ylim(len(lanes) - 0.5, -0.5)
    ax.set_yticks(range(len(lanes)), [f"rank {lane.rank}, stage {lane.stage}" for lane in lanes])
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("milliseconds since the step began; numbers are micro batches, grey is idle")
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def _legend(ax: "Axes", drawn: Iterable[tuple[str, int]]) -> None:
    from matplotlib.patches import Patch

    kinds = [kind for key, kind in KINDS.items() if key in set(drawn)]
    ax.legend(
        handles=[Patch(color=kind.colour, label=kind.label) for kind in kinds],
        loc="lower left",
        bbox_to_anchor=(-0.005, 1.0),
        ncols=len(KINDS),
        frameon=False,
        fontsize=9,
        handlelength=1.0,
        columnspacing=1.6,
    )


def _box(span: Span) -> tuple[float, float]:
    return span.start_s * 1e3, (span.end_s - span.start_s) * 1e3
