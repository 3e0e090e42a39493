"""Curves of the arms as SVG: one plot with direct labels, or a small plot for each of many arms."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dsv3 import picture
from dsv3.plan.quantities import count
from dsv3.report.blocks import Figure
from dsv3.report.curves import Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

MOST_IN_ONE_PLOT = 8
WIDTH, HEIGHT, PLOT_HEIGHT = 7.4, 3.8, 3.0
COLUMNS, PANEL_HEIGHT = 4, 1.25
WARM_UP = 0.25
"""Share of the tokens whose values do not set the frame: where losses fall from ln(vocabulary)."""
LONGEST_NAME = 22

# Colour is one of three marks: dashes and markers tell series apart without it.
_DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (2, 1)), (0, (6, 1.5, 1.5, 1.5)))
_MARKERS = "osD^vPX"


@dataclass(frozen=True)
class Plot:
    """What is said about a figure; `level` is a height to mark, with what to call it."""

    name: str
    title: str
    caption: str
    y_label: str
    digits: int
    level: tuple[float, str] | None = None


@dataclass(frozen=True)
class _Mark:
    colour: str
    dashes: Any
    marker: str
    width: float = 1.6


def curves(plot: Plot, lines: Sequence[Line], baseline: str) -> Figure | None:
    """A line with a band for each arm over tokens; None if there is nothing to draw."""
    if not lines:
        return None
    from matplotlib.figure import Figure as Canvas

    marks = _marks([line.arm for line in lines], baseline)
    names = short_names([line.arm for line in lines], LONGEST_NAME)
    description = _in_words(plot, lines)
    with picture.drawing():
        if len(lines) <= MOST_IN_ONE_PLOT:
            canvas = Canvas(figsize=(WIDTH, HEIGHT))
            _one_plot(canvas, plot, lines, marks, names)
        else:
            rows = math.ceil(len(lines) / COLUMNS)
            canvas = Canvas(figsize=(WIDTH, _height_of(rows)))
            _small_plots(canvas, plot, lines, marks, names, baseline)
        svg = picture.svg(canvas, plot.name, plot.title, description)
    return Figure(plot.name, plot.caption, description, svg)


def _marks(arms: Sequence[str], baseline: str) -> dict[str, _Mark]:
    """The baseline is plain ink; the others differ in colour, dashes and marker."""
    marks = {baseline: _Mark(picture.INK, "-", "", 2.0)}
    for number, arm in enumerate(arm for arm in arms if arm != baseline):
        marks[arm] = _Mark(
            picture.SERIES[number % len(picture.SERIES)],
            _DASHES[number % len(_DASHES)],
            _MARKERS[number % len(_MARKERS)],
        )
    return marks


def _one_plot(
    canvas: "Drawing",
    plot: Plot,
    lines: Sequence[Line],
    marks: Mapping[str, _Mark],
    names: Mapping[str, str],
) -> None:
    ax = canvas.add_axes((0.68 / WIDTH, 0.48 / HEIGHT, 4.75 / WIDTH, PLOT_HEIGHT / HEIGHT))
    for line in lines:
        _draw(ax, line, marks[line.arm])
    _frame(ax, plot, lines)
    ax.set_xlabel("tokens seen")
    ax.set_title(plot.y_label, loc="left", fontsize=9, color=picture.QUIET)
    low, high = ax.get_ylim()
    ends = [float(np.clip(line.mean[-1], low, high)) for line in lines]
    gap = (high - low) * 0.17 / PLOT_HEIGHT
    right = ax.get_xlim()[1]
    for line, end, at in zip(lines, ends, spread(ends, gap, low, high), strict=True):
        mark = marks[line.arm]
        beyond = [line.tokens[-1], right * 1.035, right * 1.06]
        leader: dict[str, Any] = {"color": mark.colour, "linewidth": 0.8, "clip_on": False}
        ax.plot(beyond, [end, at, at], marker=mark.marker, markevery=[2], markersize=4, **leader)
        ax.text(right * 1.085, at, names[line.arm], va="center", fontsize=9)
    ax.set_xlim(0, right)
    ax.set_ylim(low, high)


def _small_plots(
    canvas: "Drawing",
    plot: Plot,
    lines: Sequence[Line],
    marks: Mapping[str, _Mark],
    names: Mapping[str, str],
    baseline: str,
) -> None:
    """A panel for each arm on common axes, the baseline in each."""
    rows = math.ceil(len(lines) / COLUMNS)
    height = _height_of(rows)
    axes = canvas.subplots(rows, COLUMNS, squeeze=False).ravel()
    canvas.subplots_adjust(
        left=0.68 / WIDTH,
        right=1 - 0.1 / WIDTH,
        top=1 - 0.55 / height,
        bottom=0.48 / height,
        wspace=0.12,
        hspace=0.42,
    )
    reference = [line for line in lines if line.arm == baseline]
    mark = _Mark(picture.SERIES[0], "-", "")
    for number, (ax, line) in enumerate(zip(axes, lines, strict=False)):
        for behind in reference:
            ax.plot(behind.tokens, behind.mean, color=picture.QUIET, linewidth=1, linestyle=":")
        _draw(ax, line, marks[baseline] if line.arm == baseline else mark)
        ax.set_title(names[line.arm], loc="left", fontsize=8.5, pad=3)
        _frame(ax, plot, lines, ticks=2)
        in_sight = {"left": number % COLUMNS == 0, "bottom": number + COLUMNS >= len(lines)}
        labels = {f"label{side}": shown for side, shown in in_sight.items()}
        ax.tick_params(labelsize=8, **in_sight, **labels)
    for ax in axes[len(lines) :]:
        ax.set_visible(False)
    canvas.text(0.5, 0.06 / height, "tokens seen", ha="center", va="bottom")
    shown = f"; dotted: {picture.plain(baseline, LONGEST_NAME)}" if reference else ""
    top: dict[str, Any] = {"x": 0.1 / WIDTH, "y": 1 - 0.08 / height, "ha": "left", "va": "top"}
    canvas.text(s=f"{plot.y_label}{shown}", fontsize=9, color=picture.QUIET, **top)


def _height_of(rows: int) -> float:
    return PANEL_HEIGHT * rows + 1.0


def _draw(ax: "Axes", line: Line, mark: _Mark) -> None:
    if line.low is not None and line.high is not None:
        ax.fill_between(
            line.tokens, line.low, line.high, color=mark.colour, alpha=0.15, linewidth=0
        )
    ax.plot(
        line.tokens,
        line.mean,
        color=mark.colour,
        linestyle=mark.dashes,
        linewidth=mark.width,
        marker=mark.marker,
        markersize=4,
        markevery=max(len(line.mean) // 6, 1),
    )


def _frame(ax: "Axes", plot: Plot, lines: Sequence[Line], *, ticks: int = 5) -> None:
    from matplotlib.ticker import MaxNLocator

    end = max(float(line.tokens[-1]) for line in lines)
    ax.set_xlim(0, end)
    ax.set_ylim(*_limits(lines, end, plot.level))
    places = [place for place in MaxNLocator(ticks).tick_values(0, end) if 0 <= place <= end]
    ax.set_xticks(places, [count(place, 3) for place in places])
    ax.grid(axis="y")
    if plot.level is not None:
        height, what = plot.level
        ax.axhline(height, color=picture.QUIET, linewidth=1, linestyle=(0, (4, 2)))
        if what and ticks > 3:
            ax.annotate(
                what,
                (0.01 * end, height),
                xytext=(0, 3),
                textcoords="offset points",
                fontsize=8.5,
                color=picture.QUIET,
            )


def _limits(
    lines: Sequence[Line], end: float, level: tuple[float, str] | None
) -> tuple[float, float]:
    """From the smallest to the largest value behind the warm-up, bands included, with some air."""
    values = [] if level is None else [level[0]]
    for line in lines:
        late = line.tokens >= WARM_UP * end
        late = late if late.any() else np.ones_like(late)
        for each in (line.mean, line.low, line.high):
            if each is not None:
                values += [float(each[late].min()), float(each[late].max())]
    low, high = min(values), max(values)
    air = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - air, high + air


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near the wanted ones, `gap` apart, in the same order, within bounds if they fit.

    Neighbours that would overlap share their mean (isotonic regression by pooling).
    """
    order = sorted(range(len(wanted)), key=lambda number: wanted[number])
    pools: list[list[float]] = []  # [sum of wanted - own offset, members]
    for rank, number in enumerate(order):
        pools.append([wanted[number] - rank * gap, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] >= pools[-1][0] / pools[-1][1]:
            total, members = pools.pop()
            pools[-1][0] += total
            pools[-1][1] += members
    bases = [total / members for total, members in pools for _ in range(int(members))]
    most = max(high - gap * (len(wanted) - 1), low)
    places = [0.0] * len(wanted)
    for rank, number in enumerate(order):
        places[number] = min(max(bases[rank], low), most) + rank * gap
    return places


def short_names(arms: Sequence[str], longest: int) -> dict[str, str]:
    """Names to draw: whole if all are short, else without what they begin and end with alike.

    Cut names that would be the same get a number in front.
    """
    plain = {arm: picture.plain(arm) for arm in arms}
    if max(map(len, plain.values())) <= longest:
        return plain
    head = _alike([*plain.values()]) if len(plain) > 1 else 0
    tail = _alike([name[head:][::-1] for name in plain.values()])
    # What is alike says what differs: as much of it as there is room for.
    room = longest - 6 - max(len(name) - head - tail for name in plain.values())
    tail -= min(tail, max(room, 0) // 2)
    head -= min(head, max(room, 0) // 2)
    shorter = {arm: name[head : len(name) - tail] for arm, name in plain.items()}
    if len(plain) > 1 and all(shorter.values()) and head + tail > 6:
        plain = {
            arm: f"{'...' if head else ''}{name}{'...' if tail else ''}"
            for arm, name in shorter.items()
        }
    cut = {arm: picture.plain(name, longest) for arm, name in plain.items()}
    if len(set(cut.values())) == len(cut):
        return cut
    return {
        arm: f"{number}: {picture.plain(name, longest - 4)}"
        for number, (arm, name) in enumerate(plain.items(), start=1)
    }


def _alike(texts: Sequence[str]) -> int:
    """How many characters all of them begin with."""
    columns = zip(*texts, strict=False)  # as long as the shortest
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def _in_words(plot: Plot, lines: Sequence[Line]) -> str:
    """Where the curves end."""
    ends = sorted((float(line.mean[-1]), picture.plain(line.arm)) for line in lines)
    shown = ends if len(ends) <= MOST_IN_ONE_PLOT else [ends[0], ends[-1]]
    said = ", ".join(f"{arm} {value:.{plot.digits}f}" for value, arm in shown)
    which = "" if len(shown) == len(ends) else f" {len(ends)} arms, lowest and highest:"
    return f"{plot.title}. At the end:{which} {said}."
