"""Printing: errors on stderr, results on stdout, as a table for people or as JSON for programs."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv3.commands.streams import silence
from dsv3.errors import Dsv3Error
from dsv3.files import refused, storage_error
from dsv3.redaction import format_exception, redact, redact_data

if TYPE_CHECKING:
    from rich.text import Text

WIDE = 240
"""Columns of a table that no terminal limits."""


def write(text: str) -> None:
    """Print a line, or lines, on stdout."""
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")


def note(text: str) -> None:
    """Print a line on stderr: about what happens, not a result; to nobody if nobody reads."""
    try:
        sys.stderr.write(f"{printable(redact(text))}\n")
        sys.stderr.flush()
    except OSError:
        silence(sys.stderr)


def write_json(data: Any) -> None:
    """Print data as JSON on stdout, without secrets."""
    write(json.dumps(redact_data(data), indent=2, ensure_ascii=False, allow_nan=False))


def write_table(
    columns: Sequence[str],
    rows: Sequence[Sequence["str | Text"]],
    *,
    title: str = "",
    numbers_from: int | None = None,
) -> None:
    """Print a table on stdout, headless without `columns`; text is taken literally, not as markup.

    The columns from `numbers_from` on are flush right and never folded.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title) if title else None,
        title_justify="left",
        box=SIMPLE_HEAD if columns else None,
        padding=(0, 2 if not columns else 1, 0, 0),
        show_header=bool(columns),
    )
    for number in range(max(map(len, [columns, *rows]))):
        is_number = numbers_from is not None and number >= numbers_from
        table.add_column(
            Text(columns[number]) if columns else "",
            overflow="fold",
            justify="right" if is_number else "left",
            no_wrap=is_number,
        )
    for row in rows:
        table.add_row(*(Text(printable(c, "\n")) if isinstance(c, str) else c for c in row))

    class _Stdout(Console):
        def on_broken_pipe(self) -> None:
            raise  # noqa: PLE0704 - to the one who knows the exit code; rich would end us with 1

    _Stdout(width=None if sys.stdout.isatty() else WIDE, highlight=False).print(table)


def report(error: Exception, *, as_json: bool = False) -> int:
    """Print an error, one line for each problem, and return the exit code it ends the process with.

    Anything but a Dsv3Error is a defect of ours; DSV3_DEBUG shows the traceback of either.
    """
    if os.environ.get("DSV3_DEBUG"):
        sys.stderr.write(format_exception(error))
    if isinstance(error, OSError):
        error = refused(error) or error
    if not isinstance(error, Dsv3Error):
        what = f"{type(error).__name__}: {error}".strip().replace("\n", " ")
        error = Dsv3Error(f"{what}; this is a defect of dsv3, --debug shows where")
    for line in error.lines():
        note(line)
    if as_json:
        write_json(as_data(error))
    return error.exit_code


def refuse_lost_directory() -> None:
    """Raise CapacityError if the current directory is gone: no relative path means anything."""
    try:
        Path.cwd()
    except OSError as error:
        raise storage_error("current directory", error, "cd to one that is there") from error


def printable(text: str, kept: str = "") -> str:
    """Text whose control characters are escaped: what comes from a file or a command line must
    not reach the terminal as one.
    """
    return "".join(
        c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text
    )


def as_data(error: Dsv3Error) -> dict[str, Any]:
    """An error as plain data, for --json."""
    problems = [vars(problem) for problem in error.problems]
    return {"error": {"id": error.id, "exit_code": error.exit_code, "problems": problems}}
