"""The look of every drawing: one palette, light and dark, and SVG that is the same each time.

Matplotlib draws with the light colours; in the SVG each becomes a CSS variable, so that a drawing
follows the reader's colour scheme, alone as well as inside a page. Text stays text.
"""

import contextlib
import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Colour(NamedTuple):
    """A colour by its role, on white and on the dark page."""

    light: str
    dark: str


PALETTE: dict[str, Colour] = {
    "paper": Colour("#ffffff", "#14171c"),
    "ink": Colour("#1a1a1b", "#e9eaec"),
    "quiet": Colour("#656b74", "#a3a9b3"),
    "rule": Colour("#d5d8dd", "#3a404a"),
    "shade": Colour("#eef0f3", "#262b33"),
    "series-0": Colour("#0b6bab", "#5db5ee"),
    "series-1": Colour("#c24a0a", "#f58a4b"),
    "series-2": Colour("#06795b", "#35c79c"),
    "series-3": Colour("#8a3f96", "#cf9be2"),
    "series-4": Colour("#866a00", "#e3c23c"),
    "series-5": Colour("#b92d6f", "#f58cba"),
    "series-6": Colour("#12808f", "#6ed2df"),
    "faint-0": Colour("#7fa6dc", "#2f6ea8"),
    "faint-1": Colour("#eba36b", "#9a5220"),
}
"""Series differ in lightness too (deuteranopia, protanopia); none is below 4.5:1 on its paper."""

PAPER, INK, QUIET, RULE, SHADE = (
    PALETTE[name].light for name in ("paper", "ink", "quiet", "rule", "shade")
)
SERIES = tuple(colour.light for name, colour in PALETTE.items() if name.startswith("series-"))
FAINT = tuple(colour.light for name, colour in PALETTE.items() if name.startswith("faint-"))

STYLE: dict[str, Any] = {
    "svg.hashsalt": "dsv3",  # ids that do not change from one drawing to the next
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.size": 10,
    "text.color": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "path.simplify_threshold": 0.1,
}
NO_BREAK = "\u00a0"
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
FONTS = "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif"
_VARIABLES = {colour.light: f"var(--{name})" for name, colour in PALETTE.items()}
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """What is drawn inside looks the same whatever the user's own matplotlibrc says."""
    import matplotlib as mpl
    import matplotlib.style

    with mpl.style.context(["default", STYLE], after_reset=True), warnings.catch_warnings():
        # Names may be of any script; the reader's fonts draw them, matplotlib's only measure.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def svg(figure: "Figure", name: str, title: str, description: str = "") -> str:
    """A figure as an `<svg>` element for a page: the same text for the same figure.

    `name` keeps its ids apart from those of other figures on a page; title and description are
    what those hear or read who do not see it. Colours are the page's variables (`variables`).
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    root = ET.fromstring(buffer.getvalue())  # noqa: S314 - matplotlib has just written it
    _name_for_readers(root, name, title, description)
    _prune(root, name)
    for element in root.iter():
        _restyle(element)
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", XLINK)
    return ET.tostring(root, encoding="unicode")


def standalone(element: str) -> str:
    """An `<svg>` element as a file of its own, which brings the colours along."""
    head, rest = element.split(">", 1)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{head}><style>{variables()}</style>{rest}\n'


def variables() -> str:
    """CSS that gives each colour its value, light or dark as the reader's system has it."""
    light, dark = (
        "".join(f"--{name}:{getattr(colour, scheme)};" for name, colour in PALETTE.items())
        for scheme in ("light", "dark")
    )
    return (
        f":root{{color-scheme:light dark;{light}}}"
        f"@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"
    )


def plain(text: str, longest: int | None = None) -> str:
    """Text without control characters, which no XML holds; cut in the middle if it is too long."""
    shown = "".join(
        c
        if c.isprintable() or c == NO_BREAK
        else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )
    if longest is None or len(shown) <= longest:
        return shown
    tail = (longest - 3) // 2
    return f"{shown[: longest - 3 - tail]}...{shown[len(shown) - tail :]}"


def _name_for_readers(root: ET.Element, name: str, title: str, description: str) -> None:
    """`<title>` and `<desc>`, and an image to readers of screens."""
    texts = {"title": plain(title), "desc": plain(description)}
    texts = {tag: text for tag, text in texts.items() if text}
    for place, (tag, text) in enumerate(texts.items()):
        element = ET.Element(f"{{{SVG}}}{tag}", {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(place, element)
    root.set("role", "img")
    root.set("aria-labelledby", " ".join(f"{name}-{tag}" for tag in texts))
    root.set("font-family", FONTS)
    root.set("stroke-linejoin", "round")
    root.set("style", f"fill:{INK}")  # of text, unless it says otherwise


def _prune(root: ET.Element, name: str) -> None:
    """No metadata, no rules for the whole page, no blanks between elements; of matplotlib's ids
    only those that are referred to, under this figure's name.
    """
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
            child.tail = None
        if len(parent):
            parent.text = None
    values = [value for element in root.iter() for value in element.attrib.values()]
    used = {i for value in values for i in re.findall(r"(?:url\()?#([\w-]+)\)?", value)}
    for element in root.iter():
        own = element.get("id", "")
        if own in used:
            element.set("id", f"{name}-{own}")
        elif not own.startswith(f"{name}-"):
            element.attrib.pop("id", None)
        for key in ("clip-path", f"{{{XLINK}}}href"):
            value = element.get(key, "")
            if value.startswith(("#", "url(#")):
                element.set(key, value.replace("#", f"#{name}-"))


def _restyle(element: ET.Element) -> None:
    """Colours become variables, behind what stands for readers that know none; numbers short."""
    style = element.get("style")
    if style is not None:
        declarations = [part.strip() for part in style.split(";") if part.strip()]
        if element.tag == f"{{{SVG}}}text":
            declarations = [part for part in declarations if part != f"fill: {INK}"]
        element.set("style", ";".join(filter(None, map(_declaration, declarations))))
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    if element.tag == f"{{{SVG}}}image":
        image = element.attrib.pop(f"{{{XLINK}}}href")
        element.set(f"{{{XLINK}}}href", "".join(image.split()))
    for key in ("d", "x", "y", "transform"):
        value = element.get(key)
        if value is not None:
            value = _LONG_NUMBER.sub(lambda found: f"{float(found.group()):.2f}", value)
            element.set(key, re.sub(r"\s+", " ", value).strip())


def _declaration(text: str) -> str:
    key, _, value = (part.strip() for part in text.partition(":"))
    if key == "font-family":
        return ""
    if key == "font":  # `10px 'DejaVu Sans', ...` or `700 10px ...`: the family is the root's
        words = value.split("px", 1)[0].split()
        weight = "".join(f";font-weight:{word}" for word in words[:-1] if word in ("700", "bold"))
        return f"font-size:{words[-1]}px{weight}"
    if key in ("fill", "stroke") and value in _VARIABLES:
        return f"{key}:{value};{key}:{_VARIABLES[value]}"
    return f"{key}:{value}"
