"""Lanes over an axis of time in a terminal, and as a file of their own."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dsv3 import lanes as drawing
from dsv3 import picture
from dsv3.commands.console import note
from dsv3.files import storage_error, write_atomically
from dsv3.lanes import Box, Lane

TEXT_COLUMNS = 100
IDLE = "."


def text(lanes: Sequence[Lane], columns: int = TEXT_COLUMNS) -> list[str]:
    """A line for each lane: at each place the first letter of the kind that fills most of it."""
    end = drawing.end_of(lanes)
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
    image = picture.standalone(drawing.svg("lanes", title, lanes, axis=axis, kinds=kinds))
    write_file(path, image, option="--svg", what="the timeline is drawn in")


def write_file(path: Path, text: str, *, option: str, what: str) -> None:
    """Write the whole file or leave the old one, and say so; raises CapacityError."""
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        remedy = "name a file that can be written"
        raise storage_error(f"{option} {path}", error, remedy) from error
    note(f"{what} {path}")


def terminal_columns() -> int:
    """Room for lanes beside their names."""
    import shutil

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else TEXT_COLUMNS + 20
    return max(20, min(TEXT_COLUMNS, width - 20))
