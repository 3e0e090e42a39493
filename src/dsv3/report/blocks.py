"""What a page consists of, before it is HTML, Markdown or a terminal's table."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list; what stands before the first colon of an item is its name if `named`."""

    items: tuple[str, ...]
    named: bool = False


@dataclass(frozen=True)
class Table:
    """Cells as text. The first column names its row; those from `numbers_from` on are figures.

    One that is `dense` has many short columns, none wider than what it holds.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers_from: int = 1
    numbers_to: int | None = None
    dense: bool = False


@dataclass(frozen=True)
class Figure:
    """A drawing: `svg` is an element for a page, `description` says what it shows.

    One that is `wide` takes all of the page's width, not a column's of text.
    """

    name: str
    caption: str
    description: str
    svg: str
    wide: bool = False


@dataclass(frozen=True)
class Details:
    """What is there for those who ask; folded where that is possible."""

    summary: str
    blocks: tuple[Text | Items | Table | Figure, ...]


Block = Text | Items | Table | Figure | Details


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; `name` is its anchor."""

    name: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """A whole page; `lead` is the first that is read, then the first section."""

    title: str
    lead: str
    sections: tuple[Section, ...]

    def figures(self) -> Iterator[Figure]:
        """Every figure, in the order of the page."""
        for block in self._blocks():
            if isinstance(block, Figure):
                yield block

    def _blocks(self) -> Iterator[Block]:
        for section in self.sections:
            for block in section.blocks:
                yield block
                if isinstance(block, Details):
                    yield from block.blocks
