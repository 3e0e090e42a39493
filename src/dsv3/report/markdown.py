"""The report as Markdown, its figures as files beside it."""

import re

from dsv3 import picture
from dsv3.report.blocks import Block, Details, Figure, Items, Page, Table, Text

FIGURES = "figures"
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#$])")


def markdown(page: Page) -> str:
    """The whole page; figures are `figures/NAME.svg`."""
    lines = [f"# {_plain(page.title)}", "", f"**{_plain(page.lead)}**", ""]
    for section in page.sections:
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            lines += _block(block)
    return "\n".join(lines).rstrip("\n") + "\n"


def _block(block: Block) -> list[str]:
    match block:
        case Text(text):
            return [_plain(text), ""]
        case Items(items, named):
            return [*(f"- {_item(item, named=named)}" for item in items), ""]
        case Table():
            return _table(block)
        case Figure(name, caption, description):
            return [f"![{_plain(description)}]({FIGURES}/{name}.svg)", "", _plain(caption), ""]
        case Details(summary, blocks):
            inner = [line for each in blocks for line in _block(each)]
            return [f"### {_plain(summary)}", "", *inner]


def _item(item: str, *, named: bool) -> str:
    name, colon, text = item.partition(": ")
    return f"**{_plain(name)}**: {_plain(text)}" if named and colon else _plain(item)


def _table(table: Table) -> list[str]:
    """Figures are flush right; a table without names of columns has an empty head."""
    last = table.numbers_to if table.numbers_to is not None else len(table.columns)
    rule = (
        "---:" if table.numbers_from <= at < last else "---" for at in range(len(table.columns))
    )
    rows = [table.columns, tuple(rule), *table.rows]
    cells = [[cell if at == 1 else _plain(cell) for cell in row] for at, row in enumerate(rows)]
    return [_plain(table.caption), "", *(f"| {' | '.join(row)} |" for row in cells), ""]


def _plain(text: str) -> str:
    """Text that stays what it is: no markup, no HTML, one line."""
    return _SPECIAL.sub(r"\\\1", picture.plain(text))
