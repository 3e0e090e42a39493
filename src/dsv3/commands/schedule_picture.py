"""The curves of a schedule as one SVG: a panel for each, over one axis of tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dsv3 import picture
from dsv3.commands.schedule import number, values
from dsv3.plan.quantities import count
from dsv3.plan.scheduled import Point, Scheduled, Stage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panel = tuple[Scheduled, Sequence[Stage], Sequence[Point]]

INK, QUIET, LINE = picture.INK, picture.QUIET, picture.SERIES[0]
WIDTH, PANEL_HEIGHT, HEAD_HEIGHT = 11.0, 1.7, 1.1


def draw(title: str, panels: Sequence[Panel]) -> str:
    """An SVG of all panels; the same text for the same curves."""
    from matplotlib.figure import Figure

    height = PANEL_HEIGHT * len(panels) + HEAD_HEIGHT
    with picture.drawing():
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        top = 1 - 0.75 / height
        figure.subplots_adjust(left=0.09, right=0.68, top=top, bottom=0.55 / height, hspace=0.5)
        figure.suptitle(title, x=0.09, y=1 - 0.22 / height, ha="left", fontsize=14, weight="bold")
        for ax, panel in zip(axes, panels, strict=True):
            _panel(ax, *panel)
        axes[-1].set_xlabel("tokens seen")
        return picture.standalone(picture.svg(figure, "schedule", title))


def _panel(ax: "Axes", curve: Scheduled, stages: Sequence[Stage], points: Sequence[Point]) -> None:
    """One curve, its phases marked, and said in words beside it."""
    end = stages[-1].end
    tokens = [point.tokens for point in points]
    height = [point.value for point in points]
    ax.fill_between(tokens, height, color=LINE, alpha=0.10, linewidth=0)
    ax.plot(tokens, height, color=LINE, linewidth=2, solid_joinstyle="round")
    for stage in stages[:-1]:
        ax.axvline(stage.end, color=QUIET, linewidth=0.8, linestyle=(0, (2, 3)))
    ax.set_title(curve.title, loc="left", fontsize=11, color=INK)
    ax.grid(axis="y")
    ax.set_xlim(0, end)
    ax.set_ylim(0, curve.peak * 1.12)
    ticks = [end * part / 4 for part in range(5)]
    ax.set_xticks(ticks, [count(tick, 3) for tick in ticks])
    ax.set_yticks([0, curve.peak], ["0", number(curve.peak)])
    ends = [f"to {count(stage.end, 5)}" for stage in stages]
    beside: dict[str, Any] = {
        "transform": ax.transAxes,
        "va": "top",
        "fontsize": 9,
        "linespacing": 1.5,
    }
    ax.text(1.03, 1.0, "\n".join(ends), color=QUIET, **beside)
    ax.text(1.18, 1.0, "\n".join(map(_in_words, stages)), **beside)


def _in_words(stage: Stage) -> str:
    """`2.2e-4`, or `2.2e-4 to 2.2e-5 (cosine)`."""
    moves = stage.value_at_begin != stage.value_at_end
    return values(stage) + (f" ({stage.shape})" if moves else "")
