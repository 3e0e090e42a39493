"""`dsv3 report`: what a sweep shows, as a page, as files for programs, and here."""

import sys
from collections.abc import Sequence
from pathlib import Path

from dsv3.commands import console
from dsv3.commands.targets import understood
from dsv3.errors import ConfigError, Problem
from dsv3.sweep.record import SweepRecord, find_or_refuse


def report(words: Sequence[str], *, output: Path | None = None, as_json: bool = False) -> int:
    """Judge a sweep, write its report and print the gist of it; the exit code.

    It is written beside the record, into a directory with the name of the sweep, or into `output`.
    """
    from dsv3.report.collect import collect
    from dsv3.report.export import as_data
    from dsv3.report.page import build
    from dsv3.report.verdicts import judge
    from dsv3.report.write import HTML, write

    record, root = _asked(words)
    directory = (output if output is not None else root / record.id).expanduser()
    study = collect(record, beside=root)
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


def _asked(words: Sequence[str]) -> tuple[SweepRecord, Path]:
    """The one sweep that is named, and the directory of its record."""
    names, roots = understood(words)
    if len(names) != 1:
        rule = "one sweep has to be named"
        raise ConfigError(Problem("dsv3 report", rule, "dsv3 report SWEEP [sweep_root=DIR]"))
    return find_or_refuse(names[0], roots.sweep_root)
