"""The report in a terminal: the question, the verdicts, the figures, in the columns there are."""

from typing import TYPE_CHECKING

from dsv3 import picture
from dsv3.report import tables, wording
from dsv3.report.blocks import Items, Page, Table, Text
from dsv3.report.study import Study
from dsv3.report.verdicts import Judgement

if TYPE_CHECKING:
    from rich.console import Console


def show(console: "Console", page: Page, study: Study, judgement: Judgement) -> None:
    """Print the verdicts, every figure of every arm, and which runs are missing."""
    from rich.text import Text as Words

    def say(text: str, style: str = "") -> None:
        console.print(Words(picture.plain(text), style=style))

    say(page.title, "dim")
    say(page.lead, "bold")
    verdict = next(section for section in page.sections if section.name == "verdict")
    for block in verdict.blocks:
        console.print()
        match block:
            case Text(text):
                say(text)
            case Items(items):
                for item in items:
                    say(item)
            case Table():
                _print(console, block)
    console.print()
    if len(judgement.deciding.arms) <= tables.MOST_COLUMNS and console.width >= tables.WIDE:
        _print(console, tables.results(judgement))
    else:
        _print(console, by_arm(judgement))
    _print(console, tables.cost(study))
    if judgement.missing:
        _print(console, tables.missing(judgement))


def by_arm(judgement: Judgement) -> Table:
    """The deciding figure and the two that matter most beside it: as many as 80 columns hold."""
    chosen = [judgement.deciding, *judgement.others][:3]
    rows = tuple(
        (
            figures.arm,
            *(wording.mean_and_spread(f.of_arm(figures.arm), f.info.digits) for f in chosen),
        )
        for figures in judgement.deciding.arms
    )
    columns = ("arm", *(f.info.label for f in chosen))
    return Table("results", f"Mean {wording.PLUS_MINUS} standard deviation", columns, rows)


def _print(console: "Console", table: Table) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Grid
    from rich.text import Text as Words

    last = table.numbers_to if table.numbers_to is not None else len(table.columns)
    grid = Grid(
        title=Words(picture.plain(table.caption)),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for at, column in enumerate(table.columns):
        is_figure = table.numbers_from <= at < last
        grid.add_column(
            Words(picture.plain(column)),
            justify="right" if is_figure else "left",
            overflow="fold",
        )
    for row in table.rows:
        grid.add_row(*(Words(picture.plain(cell)) for cell in row))
    console.print(grid)
