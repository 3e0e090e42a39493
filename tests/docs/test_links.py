"""Every relative link of every page leads somewhere; no page has two headings of one name."""

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from architecture.checkout import kept_files

ROOT = Path(__file__).resolve().parents[2]
PAGES = [path for path in kept_files(ROOT) if path.suffix == ".md"]


def headings(page: Path) -> list[str]:
    """Titles of a page, as text."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    return [
        tokens[at + 1].content for at, token in enumerate(tokens) if token.type == "heading_open"
    ]


def anchor(title: str) -> str:
    """The fragment a heading is reached by: lower case, no punctuation, blanks as hyphens."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def link_findings(page: Path) -> list[str]:
    """Relative links of a page to a file or a heading that is not there."""
    findings = []
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        for child in token.children or []:
            target = child.attrs.get("href", child.attrs.get("src", ""))
            if not isinstance(target, str) or not target or "://" in target:
                continue
            file, _, fragment = target.partition("#")
            there = page if file == "" else page.parent / file
            if not there.exists():
                findings.append(f"{page.name}: {target} leads nowhere")
            elif fragment and fragment not in map(anchor, headings(there)):
                findings.append(f"{page.name}: {target} names no heading")
    return findings


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_links_to_what_is_there(page: Path) -> None:
    assert link_findings(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_has_no_two_headings_of_one_name(page: Path) -> None:
    titles = headings(page)
    assert titles, f"{page.name} has no heading"
    assert sorted(set(titles)) == sorted(titles)


def test_the_pages_are_found() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in PAGES}
    assert {"README.md", "CHANGELOG.md", "docs/architecture.md", "docs/decisions.md"} <= names


def test_planted_dead_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, with `code`\n[up](#a-title-with-code) [x](gone.md) [y](#gone) "
        "[z](page.md#a-title-with-code) ![p](gone.png) [w](https://arxiv.org/)\n"
    )
    assert link_findings(page) == [
        "page.md: gone.md leads nowhere",
        "page.md: #gone names no heading",
        "page.md: gone.png leads nowhere",
    ]
