"""The curves of a schedule as one SVG: a panel for each, over one axis of tokens."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dsv3.commands.schedule import number, values
from dsv3.plan.quantities import count
from dsv3.plan.scheduled import Point, Scheduled, Stage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panel = tuple[Scheduled, Sequence[Stage], Sequence[Point]]

INK, QUIET, LINE = "#1a1a1a", "#8a8f98", "#2458a6"
STYLE: dict[str, Any] = {
    "svg.hashsalt": "dsv3",  # ids that do not change from one drawing to the next
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}
WIDTH, PANEL_HEIGHT, HEAD_HEIGHT = 11.0, 1.7, 1.1


def picture(title: str, panels: Sequence[Panel]) -> bytes:
    """An SVG of all panels; the same bytes for the same curves."""
    import matplotlib as mpl
    import matplotlib.style
    from matplotlib.figure import Figure

    height = PANEL_HEIGHT * len(panels) + HEAD_HEIGHT
    buffer = io.BytesIO()
    # Whatever the user's own matplotlibrc says, the picture is the same.
    with mpl.style.context(["default", STYLE], after_reset=True):
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        top = 1 - 0.75 / height
        figure.subplots_adjust(left=0.09, right=0.68, top=top, bottom=0.55 / height, hspace=0.5)
        figure.suptitle(title, x=0.09, y=1 - 0.22 / height, ha="left", fontsize=14, weight="bold")
        for ax, panel in zip(axes, panels, strict=True):
            _panel(ax, *panel)
        axes[-1].set_xlabel("tokens seen")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


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
    ax.set_axisbelow(True)
    ax.grid(axis="y", color=QUIET, alpha=0.25, linewidth=0.6)
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
