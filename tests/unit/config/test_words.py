"""Suggestions, types in words, differences, and the page of all keys."""

import pytest

from dsv3.config.diff import ABSENT, differences
from dsv3.config.keys import find, keys
from dsv3.config.locations import shipped
from dsv3.config.reference import path, reference
from dsv3.config.root import RunConfig
from dsv3.config.section import Section
from dsv3.config.suggest import closest, did_you_mean


def test_closest() -> None:
    names = ["seed", "schedule.lr", "schedule.lr_curve", "model.hidden_size", "data.path"]
    assert closest("sed", names) == ["seed"]
    assert closest("lr", names) == ["schedule.lr"]
    assert closest("hidden_size", names) == ["model.hidden_size"]
    assert closest("optimizer.hiden_size", names) == ["model.hidden_size"]
    assert closest("modle.hiden_size", names) == ["model.hidden_size"]
    assert closest("schedule.foo", names) == []  # near to `schedule.lr` in all but its meaning
    assert closest("schedule.lr_curv", names) == ["schedule.lr_curve"]
    assert closest("model.lr", names) == ["schedule.lr"]
    assert closest("zzz", names) == []
    assert did_you_mean("zzz", names) == ""


def test_a_last_part_that_two_keys_share_suggests_both() -> None:
    names = ["a.every_steps", "b.every_steps", "c.steps"]
    assert did_you_mean("every_steps", names, suffix="=3") == (
        "did you mean a.every_steps=3 or b.every_steps=3?"
    )


def test_every_field_of_the_schema_is_a_described_key() -> None:
    count = 0
    pending: list[type[Section]] = [RunConfig]
    for section in pending:
        for field in section.model_fields.values():
            count += 1
            kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
            pending += [k for k in kinds if isinstance(k, type) and issubclass(k, Section)]
    shares = [path for path in keys() if path.startswith("data.domain_shares.")]
    assert shares == [f"data.domain_shares.{name}" for name in ("python", "c", "docs", "math")]
    assert len(keys()) == count + len(shares) > 60
    assert [key.path for key in keys().values() if key.description.strip() == ""] == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("seed", "a whole number >= 0 and < 2^63"),
        ("run_root", "a text that is not empty"),
        ("run.tag", "a text that is not empty, or null"),
        ("data.domain_shares", "a section with keys of its own, or null"),
        ("data.domain_shares.math", "a number >= 0"),
        ("model.norm_topk_prob", "true or false"),
        ("model.q_lora_rank", "a whole number > 0, or null"),
        ("model.scoring_func", "one of sigmoid, softmax"),
        ("schedule.lr_curve.phases", "a list"),
        ("schedule.lr_curve.phases.7.value", "a number >= 0"),
    ],
)
def test_types_in_words(name: str, words: str) -> None:
    key = find(name)
    assert key is not None
    assert key.type_in_words == words


def test_differences_go_into_lists_and_sections_that_are_null_elsewhere() -> None:
    a = {"x": 1, "l": [{"v": 1}, {"v": 2}], "n": None, "same": [1, 2]}
    b = {"x": 1, "l": [{"v": 1}, {"v": 3}], "n": {"k": 5}, "same": [1, 2]}
    assert differences([a, b]) == {"l.1.v": [2, 3], "n": [None, ABSENT], "n.k": [ABSENT, 5]}
    assert differences([a, a]) == {}


def test_the_page_of_all_keys_is_current() -> None:
    assert path() == shipped("conf").parent / "docs" / "configuration.md"
    assert path().read_text(encoding="utf-8") == reference(), (
        "docs/configuration.md is stale: run `python -m dsv3.config.reference`"
    )


def test_the_page_names_every_key_once() -> None:
    page = reference()
    for key in keys().values():
        if "." in key.path or not key.is_section:
            assert page.count(f"| `{key.path}` |") == 1, key.path
