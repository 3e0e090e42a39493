"""A report on disk: the same input gives the same bytes, and a reader sees whole files only."""

import contextlib
from pathlib import Path

from dsv3 import picture
from dsv3.files import storage_error, write_atomically
from dsv3.report.blocks import Page
from dsv3.report.export import (
    RUN_COLUMNS,
    SUMMARY_COLUMNS,
    as_csv,
    as_data,
    as_json,
    run_rows,
    summary,
)
from dsv3.report.html import html
from dsv3.report.markdown import FIGURES, markdown
from dsv3.report.metrics import METRICS
from dsv3.report.study import Study
from dsv3.report.verdicts import Judgement

HTML, MARKDOWN, RUNS, SUMMARY, JSON = (
    "report.html",
    "report.md",
    "runs.csv",
    "summary.csv",
    "report.json",
)


def write(directory: Path, page: Page, study: Study, judgement: Judgement) -> None:
    """Write every form of the report into `directory`, which is made; others there stay.

    Figures that an older report had and this one has not are taken away. Raises CapacityError if
    the storage fails.
    """
    contents = {
        **{f"{FIGURES}/{each.name}.svg": picture.standalone(each.svg) for each in page.figures()},
        MARKDOWN: markdown(page),
        RUNS: as_csv((*RUN_COLUMNS, *METRICS), run_rows(study, judgement)),
        SUMMARY: as_csv(SUMMARY_COLUMNS, summary(judgement)),
        JSON: as_json(as_data(study, judgement)),
        HTML: html(page),
    }
    try:
        (directory / FIGURES).mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            path = directory / name
            if not _holds(path, content.encode()):
                write_atomically(path, content.encode())
        for old in (directory / FIGURES).glob("*.svg"):
            if f"{FIGURES}/{old.name}" not in contents:
                old.unlink()
    except OSError as error:
        remedy = "make it writable with some free space, or choose another --output"
        raise storage_error(directory, error, remedy) from error


def _holds(path: Path, content: bytes) -> bool:
    """Whether the file is there already: what has not changed keeps its time."""
    with contextlib.suppress(OSError):
        return path.read_bytes() == content
    return False
