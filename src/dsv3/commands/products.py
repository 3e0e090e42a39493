"""In which formats the products of a run ran, in short."""

from pathlib import Path
from typing import Any

from dsv3.errors import Dsv3Error
from dsv3.runs.directory import RunDirectory
from dsv3.runs.files import read_json


def products(run: Path) -> dict[str, Any] | None:
    """The summary of gemms.json for training, or for the evaluation where nothing was trained.

    None if there is no such file yet, or none that can be read.
    """
    try:
        found = read_json(RunDirectory(run).gemms_path)
        part = found["training"] or found["evaluation"]
        return dict(part["summary"])
    except (Dsv3Error, KeyError, TypeError):
        return None
