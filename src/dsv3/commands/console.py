"""Printing: errors on stderr, results on stdout, as a table for people or as JSON for programs."""

import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from dsv3.errors import Dsv3Error

WIDE = 240
"""Columns of a table that no terminal limits."""


def write(text: str) -> None:
    """Print a line, or lines, on stdout."""
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")


def note(text: str) -> None:
    """Print a line on stderr: about what happens, not a result."""
    sys.stderr.write(f"{text}\n")


def write_json(data: Any) -> None:
    """Print data as JSON on stdout."""
    write(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))


def write_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """Print a table on stdout; the text is taken literally, not as markup."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title) if title else None, box=SIMPLE_HEAD, title_justify="left")
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else WIDE, highlight=False).print(table)


def report(error: Exception, *, as_json: bool = False) -> int:
    """Print an error, one line for each problem, and return the exit code it ends the process with.

    Anything but a Dsv3Error is a defect of ours; DSV3_DEBUG shows the traceback of either.
    """
    if os.environ.get("DSV3_DEBUG"):
        traceback.print_exception(error, file=sys.stderr)
    if not isinstance(error, Dsv3Error):
        what = f"{type(error).__name__}: {error}".strip().replace("\n", " ")
        error = Dsv3Error(f"{what}; this is a defect of dsv3, --debug shows where")
    sys.stderr.writelines(f"{line}\n" for line in error.lines())
    if as_json:
        write_json(as_data(error))
    return error.exit_code


def as_data(error: Dsv3Error) -> dict[str, Any]:
    """An error as plain data, for --json."""
    problems = [vars(problem) for problem in error.problems]
    return {"error": {"id": error.id, "exit_code": error.exit_code, "problems": problems}}
