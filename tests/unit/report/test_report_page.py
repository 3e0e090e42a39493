"""The HTML page: well formed, alone, safe, small, readable without colour and without a mouse."""

import re

import pytest

import fabricated
from dsv3 import picture
from dsv3.report import tables
from dsv3.report.blocks import Page
from dsv3.report.html import html
from dsv3.report.page import build
from dsv3.report.study import Study
from dsv3.report.verdicts import judge
from unit.report.reader import Reader

MOST_BYTES = 2 * 1024 * 1024


def page_of(study: Study) -> Page:
    return build(study, judge(study))


@pytest.fixture(scope="module")
def study() -> Study:
    return fabricated.study(
        arms=("aux_loss", "aux_free", "aux_free_seq", "none"),
        seeds=(1, 2),
        failed=[("none", 2)],
        missing=[("aux_free_seq", 2)],
    )


@pytest.fixture(scope="module")
def page(study: Study) -> Page:
    return page_of(study)


@pytest.fixture(scope="module")
def reader(page: Page) -> Reader:
    return Reader(html(page))


def test_sections_come_in_the_order_of_a_reader(reader: Reader, page: Page) -> None:
    order = [name for name, _ in ((s.name, s.title) for s in page.sections)]
    assert order == [
        "verdict",
        "numbers",
        "paper",
        "loss",
        "error",
        "balance",
        "experts",
        "cost",
        "missing",
        "configuration",
        "pairs",
        "provenance",
    ]
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [link["href"] for link in reader.all("a")]
    assert links == ["#verdict", *(f"#{name}" for name in order)]
    said = reader.words()
    assert said.index(page.lead) < said.index("Rule:")


def test_nothing_is_loaded_and_nothing_runs(reader: Reader) -> None:
    reader.refuse_anything_loaded()


def test_references_of_drawings_are_there(reader: Reader) -> None:
    ids = {attributes["id"] for _, attributes in reader.tags if "id" in attributes}
    used = set()
    for _, attributes in reader.tags:
        for name, value in attributes.items():
            if name == "aria-labelledby" and value is not None:
                used |= set(value.split())
            elif name in ("xlink:href", "clip-path", "href") and value is not None:
                used |= set(re.findall(r"^(?:url\()?#([\w-]+)\)?$", value))
    assert len(used) > 20
    assert used <= ids


def test_colours_follow_the_scheme(reader: Reader, page: Page) -> None:
    text = html(page)
    assert text.count("@media(prefers-color-scheme:dark)") == 1
    assert {f"--{name}:" for name in picture.PALETTE} <= set(re.findall(r"--[\w-]+:", text))
    for tag, attributes in reader.tags:
        style = attributes.get("style") or ""
        for key, colour in re.findall(r"(fill|stroke):(#\w+)", style):
            assert f"{key}:var(--" in style or tag == "svg", (tag, style)
            assert colour in {each.light for each in picture.PALETTE.values()}


def test_figures_are_named_reachable_and_not_empty(reader: Reader, page: Page) -> None:
    drawings = reader.all("svg")
    assert len(drawings) == len(list(page.figures())) == 5 + 4
    assert all(drawing["role"] == "img" for drawing in drawings)
    regions = [each for each in reader.all("div") if each.get("class") == "wide"]
    assert len(regions) >= len(drawings)
    assert all(each["tabindex"] == "0" and each["role"] == "region" for each in regions)
    for figure in page.figures():
        assert f'<title id="{figure.name}-title">' in figure.svg
        assert figure.description.split(".")[0][:20] in figure.svg
        drawn = re.findall(r'd="M [^"]+"', figure.svg)
        longest = max(drawn, key=len)
        is_map = figure.name.startswith("experts")
        assert ("data:image/png" in figure.svg) == is_map
        assert is_map or longest.count(" L ") >= 60, figure.name


def test_tables_have_heads_for_rows_and_columns(reader: Reader) -> None:
    heads = [head["scope"] for head in reader.all("th")]
    assert len(reader.all("caption")) == len(reader.all("table"))
    assert "col" in heads and "row" in heads
    assert all(scope in ("col", "row") for scope in heads)


def test_failed_and_missing_runs_are_in_sight(reader: Reader) -> None:
    said = reader.words()
    assert "4 arms, 6 of 8 runs done" in said
    assert "not finite at step 140" in said
    assert "not decided: numbers went wrong in none seed 2" in said
    assert "no result yet of aux_free_seq seed 2" in said


def test_the_published_result_stands_beside_ours_with_a_reason(page: Page) -> None:
    section = next(section for section in page.sections if section.name == "paper")
    table = section.blocks[-1]
    assert table.columns[0] == "benchmark"
    assert table.columns[-1] == "not comparable because"
    assert "published: aux-loss-free" in table.columns
    assert "ours: aux_free" in table.columns
    assert table.rows[0][table.columns.index("published: aux-loss-free")] == "0.724"
    assert "1.33T there" in table.rows[0][-1]
    assert all(row[-1] for row in table.rows)


def test_where_arms_differ_values_are_as_in_the_configuration() -> None:
    rows = tables.configuration(fabricated.study(arms=("none", "aux_free"), seeds=(1,))).rows
    assert ("aux_free", "balance.bias_update_speed", "0.0", "0.003") in rows
    assert ("aux_free", "balance.strategy", "none", "aux_free") in rows


def test_the_command_is_as_typed_and_not_where_the_program_lies(study: Study) -> None:
    rows = dict(tables.provenance(study).rows)
    assert rows["command"] == "dsv3 train recipe=table5_balance model=moe_nano"


def test_the_same_study_gives_the_same_bytes(study: Study, page: Page) -> None:
    assert html(page_of(study)) == html(page)


@pytest.mark.parametrize("seeds", [(1,), (1, 2)])
def test_hostile_names_are_text(seeds: tuple[int, ...]) -> None:
    hostile = fabricated.HOSTILE
    found = page_of(fabricated.study(arms=("none", hostile, "b" * 200), seeds=seeds))
    reader = Reader(html(found))
    assert not reader.all("script")
    assert "<script>alert(1)</script>&" in reader.words()
    assert "\u202e" not in reader.words() and "\x07" not in reader.words()
    assert all("<script" not in figure.svg for figure in found.figures())


def test_a_study_of_one_run_and_one_without_any(study: Study) -> None:
    one = page_of(fabricated.study(arms=("none",), seeds=(1,)))
    assert "nothing to compare it with" in Reader(html(one)).words()
    none = page_of(
        fabricated.study(
            arms=("none", "aux_free"), seeds=(1,), missing=[("none", 1), ("aux_free", 1)]
        )
    )
    said = Reader(html(none)).words()
    assert "No run has made a step yet." in said
    assert not list(none.figures())


@pytest.mark.slow
@pytest.mark.parametrize(("arms", "seeds"), [(8, 5), (40, 1)])
def test_forty_runs_fit(arms: int, seeds: int) -> None:
    names = [f"balance.bias_update_speed={number}e-4" for number in range(arms)]
    study = fabricated.study(
        arms=names, seeds=tuple(range(seeds)), experts=64, layers=26, domains=5
    )
    text = html(page_of(study))
    assert len(text.encode()) < MOST_BYTES
    assert all(text.count(name) >= 5 for name in names)
