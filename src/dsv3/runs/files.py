"""Small files of a run directory: whole, and refused with its errors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsv3 import files
from dsv3.errors import CheckpointError, Problem


def write_atomically(path: Path, text: str, *, writer: str | None = None) -> None:
    """Replace `path` so that a crash leaves the old file or the new one; `writer` as in `files`.

    Raises CapacityError naming `path` if the file system refuses; the old file then stands.
    """
    try:
        files.write_atomically(path, text.encode(), writer=writer)
    except OSError as error:
        remedy = "free some space there, or make it writable"
        raise files.storage_error(path, error, remedy) from error


def write_json(path: Path, value: Mapping[str, Any], *, writer: str | None = None) -> None:
    """Write `value` atomically, readable by people."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n", writer=writer)


def read_json(path: Path) -> dict[str, Any]:
    """Read an object written by `write_json`; raises CheckpointError if it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from error
    if not isinstance(value, dict):
        raise damaged(path, "it is not a JSON object")
    return value


def damaged(path: Path, what: str) -> CheckpointError:
    """What to raise when a file of a run directory cannot be read."""
    remedy = "restore the file, or start the run afresh under another run.tag"
    return CheckpointError(Problem(str(path), f"this file of the run is damaged: {what}", remedy))
