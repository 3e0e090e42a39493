"""Small files written so that a crash leaves the old one or the new one, never a torn one."""

import contextlib
import json
import os
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsv3.errors import CapacityError, CheckpointError, Problem


def storage_error(path: Path | str, error: OSError | ValueError, remedy: str) -> CapacityError:
    """What to raise when the file system refuses `path`."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return CapacityError(Problem(str(path), reason[:1].lower() + reason[1:], remedy))


def sync_directory(directory: Path) -> None:
    """Make the entries of `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, text: str) -> None:
    """Write a new file and fsync it; a file that is already there is an error."""
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by temporary file, fsync and rename.

    Raises CapacityError naming `path` if the file system refuses; the old file then stands.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write_synced(temporary, text)
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise storage_error(path, error, "free some space there, or make it writable") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` atomically, readable by people."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


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


def probe_writable(directory: Path) -> None:
    """Write a page into an unnamed file of `directory`; nothing is left behind.

    Raises OSError: permission bits alone know nothing of quotas, full disks or read-only mounts.
    """
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())
