"""`dsv3 report`: what a sweep shows, as a page, as files for programs, and here."""

import sys
from pathlib import Path

from dsv3.commands import console
from dsv3.errors import ConfigError, Problem
from dsv3.sweep.record import SweepRecord


def report(sweep: str, *, output: Path | None = None, as_json: bool = False) -> int:
    """Judge a sweep, write its report and print the gist of it."""
    from dsv3.report.collect import collect
    from dsv3.report.export import as_data
    from dsv3.report.page import build
    from dsv3.report.verdicts import judge
    from dsv3.report.write import HTML, write

    record, beside = _find(sweep)
    directory = output if output is not None else beside / record.id
    study = collect(record, beside=beside)
    judgement = judge(study)
    page = build(study, judgement)
    write(directory, page, study, judgement)
    if as_json:
        console.write_json({"report": str(directory / HTML), **as_data(study, judgement)})
        return 0
    from rich.console import Console

    from dsv3.report.terminal import show

    width = None if sys.stdout.isatty() else console.WIDE
    show(Console(width=width, highlight=False), page, study, judgement)
    console.write(f"report: {directory / HTML}")
    return 0


def _find(sweep: str) -> tuple[SweepRecord, Path]:
    """The record that `sweep` is the path of, and its directory."""
    path = Path(sweep).expanduser()
    try:
        return SweepRecord.model_validate_json(path.read_bytes()), path.parent
    except (OSError, ValueError) as error:
        said = str(error).partition("\n")[0]
        remedy = "name the file sweeps/<id>.json that `dsv3 train` wrote"
        raise ConfigError(Problem(sweep, f"not the record of a sweep: {said}", remedy)) from error
