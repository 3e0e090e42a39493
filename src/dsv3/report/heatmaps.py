"""Figure 9 of the report: load of every expert in every domain, a strip for each layer.

The colour is one, from clear at no load to full at ten times the even load, so that it reads on
light and dark pages alike. The largest load of each row is printed beside it, and in cells that are
wide enough so are loads from twice the even one on: nothing depends on the colour.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsv3 import picture
from dsv3.report.blocks import Figure
from dsv3.report.study import ExpertLoad

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

FULL_LOAD = 10.0
"""Where the scale ends, as in the report."""
COLOUR = (0.83, 0.31, 0.12)
PRINTED_FROM, MOST_EXPERTS_PRINTED = 2.0, 20
WIDTH, LEFT, RIGHT = 7.4, 1.2, 1.25
ROW, SMALL_ROW, BETWEEN, FOOT = 0.2, 0.08, 0.3, 0.85
LONGEST_DOMAIN = 18


class _Strip(NamedTuple):
    """Rows drawn as one image: `labels` beside them, `load_RE` [rows, experts]."""

    title: str
    labels: Sequence[str]
    load_RE: NDArray[np.float64]


def chosen_layers(load: ExpertLoad) -> tuple[int, ...]:
    """Places of the first, the middle and the last MoE layer."""
    last = len(load.layers) - 1
    return tuple(sorted({0, last // 2, last}))


def strips(name: str, arm: str, seed: int, load: ExpertLoad) -> Figure:
    """First, middle and last layer: domains x experts."""
    chosen = chosen_layers(load)
    parts = [
        _Strip(f"layer {load.layers[at]}", load.domains, load.relative_DLE[:, at]) for at in chosen
    ]
    layers = ", ".join(load.layers[at] for at in chosen)
    caption = f"{arm}, seed {seed}: relative load of each expert, layers {layers}"
    svg = _draw(name, caption, parts, row=ROW, description=_in_words(load, chosen))
    return Figure(name, caption, _in_words(load, chosen), svg)


def all_layers(name: str, arm: str, seed: int, load: ExpertLoad) -> Figure:
    """Every layer, for each of them a row of every domain; labels name the layer."""
    domains, layers, experts = load.relative_DLE.shape
    rows_LDE = load.relative_DLE.transpose(1, 0, 2).reshape(layers * domains, experts)
    labels = [""] * (layers * domains)
    for at, layer in enumerate(load.layers):
        labels[at * domains + domains // 2] = f"layer {layer}"
    order = ", ".join(picture.plain(domain, LONGEST_DOMAIN) for domain in load.domains)
    strip = _Strip(f"in each layer from the top: {order}", labels, rows_LDE)
    caption = f"{arm}, seed {seed}: relative load of each expert, all layers"
    words = _in_words(load, range(layers))
    svg = _draw(name, caption, [strip], row=SMALL_ROW, description=words, group=domains)
    return Figure(name, caption, words, svg)


def _draw(
    name: str,
    title: str,
    parts: Sequence[_Strip],
    *,
    row: float,
    description: str,
    group: int = 1,
) -> str:
    """The strips from the top, then the scale; sizes in inches. `group` rows share a label."""
    from matplotlib.figure import Figure as Canvas

    heights = [row * len(part.labels) for part in parts]
    height = sum(heights) + BETWEEN * len(parts) + FOOT
    with picture.drawing():
        canvas = Canvas(figsize=(WIDTH, height))
        top = height
        for number, (part, tall) in enumerate(zip(parts, heights, strict=True), start=1):
            top -= BETWEEN + tall
            box = (LEFT / WIDTH, top / height, (WIDTH - LEFT - RIGHT) / WIDTH, tall / height)
            _strip(canvas.add_axes(box), part, group, numbered=number == len(parts))
        _scale(canvas, height)
        return picture.svg(canvas, name, title, description)


def _strip(ax: "Axes", part: _Strip, group: int, *, numbered: bool) -> None:
    """One image with its labels; plain text is a tenth of what matplotlib's ticks take."""
    rows, experts = part.load_RE.shape
    left, right, bottom = -0.5, experts - 0.5, rows - 0.5
    ax.imshow(
        _coloured(part.load_RE),
        interpolation="none",
        aspect="auto",
        extent=(left, right, bottom, -0.5),
    )
    _bare(ax)
    ax.set_title(part.title, loc="left", fontsize=9, pad=3)
    ax.hlines(np.arange(group, rows, group) - 0.5, left, right, color=picture.RULE, linewidth=0.6)
    for at, label in enumerate(part.labels):
        if not label:
            continue
        block_RE = part.load_RE[at - at % group : at - at % group + group]
        most, expert = float(block_RE.max()), int(block_RE.max(0).argmax())
        said = f"largest {most:.1f}, expert {expert}"
        name = picture.plain(label, LONGEST_DOMAIN)
        ax.text(left - 0.01 * experts, at, name, ha="right", va="center", fontsize=8)
        ax.text(right + 0.012 * experts, at, said, va="center", fontsize=7.5)
    if experts <= MOST_EXPERTS_PRINTED and group == 1:
        for at, expert in np.argwhere(part.load_RE >= PRINTED_FROM):
            value = f"{part.load_RE[at, expert]:.1f}"
            ax.text(expert, at, value, ha="center", va="center", fontsize=7)
    for expert in range(0, experts, max(round(experts / 16), 1)) if numbered else ():
        ax.annotate(
            str(expert),
            (expert, bottom),
            xytext=(0, -3),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=7.5,
        )


def _bare(ax: "Axes") -> None:
    """A frame without ticks."""
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ("top", "right"):
        ax.spines[side].set_visible(True)


def _coloured(load_RE: NDArray[np.float64]) -> NDArray[np.uint8]:
    """RGBA of each cell: the one colour, more of it the larger the load."""
    image = np.empty((*load_RE.shape, 4), dtype=np.uint8)
    image[..., :3] = np.round(np.array(COLOUR) * 255)
    image[..., 3] = np.round(np.clip(load_RE / FULL_LOAD, 0, 1) * 255)
    return image


def _scale(canvas: "Drawing", height: float) -> None:
    box = (LEFT / WIDTH, 0.34 / height, 2.4 / WIDTH, 0.11 / height)
    ax = canvas.add_axes(box)
    ramp = np.linspace(0, FULL_LOAD, 64)[None]
    ax.imshow(_coloured(ramp), interpolation="none", aspect="auto", extent=(0, FULL_LOAD, 0, 1))
    _bare(ax)
    for load in (0, 1, 2, 4, 6, 8, 10):
        text = "10 or more" if load == FULL_LOAD else str(load)
        ax.text(
            load, -0.25, text, ha="left" if load == FULL_LOAD else "center", va="top", fontsize=7.5
        )
    said = "load over the even load; columns are experts"
    ax.text(FULL_LOAD * 1.3, 0.5, said, va="center", fontsize=8, color=picture.QUIET)


def _in_words(load: ExpertLoad, chosen: Sequence[int]) -> str:
    """The extreme of each layer."""
    said = []
    for at in chosen:
        load_DE = load.relative_DLE[:, at]
        domain, expert = np.unravel_index(int(load_DE.argmax()), load_DE.shape)
        name = picture.plain(load.domains[int(domain)])
        most = load_DE[domain, expert]
        said.append(f"layer {load.layers[at]}: at most {most:.1f}, expert {expert} in {name}")
    return f"Even load is 1. {'; '.join(said)}."
