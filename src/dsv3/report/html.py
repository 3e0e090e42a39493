"""A page as one HTML file: no script, nothing from elsewhere, light and dark."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from dsv3 import picture
from dsv3.report.blocks import Block, Page

LONGEST_HEAD = 40
"""Characters of a column's name; it is a row's name elsewhere, in full."""


def html(page: Page) -> str:
    """The whole page; the same text for the same page. All is escaped but SVG and colours."""
    environment = Environment(
        loader=PackageLoader("dsv3.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = picture.plain
    environment.filters["named"] = _named
    environment.tests["of_kind"] = _of_kind
    template = environment.get_template("report.html.j2")
    return template.render(
        LONGEST_HEAD=LONGEST_HEAD,
        page=page,
        variables=picture.variables(),
    )


def _of_kind(block: Block, kind: str) -> bool:
    return type(block).__name__ == kind


def _named(item: str) -> tuple[str, str]:
    """Name and text of `name: text`. Names may hold colons: the name ends before a blank."""
    name, colon, text = item.partition(": ")
    return (name, text) if colon else ("", item)
