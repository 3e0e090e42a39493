"""Every key is described, valued in conf/ alone and obeyed; the checks see a planted lapse."""

from pathlib import Path

import pytest
from pydantic import BaseModel, Field

from architecture.schema import description_findings, sections, unread_findings
from dsv3.config.root import RunConfig


class _Inner(BaseModel):
    described: int = Field(..., description="A size.")
    bare: int


class _Outer(BaseModel):
    inner: tuple[_Inner, ...] | None = Field(..., description="Parts.")
    valued: int = Field(3, description="A size.")


def test_every_key_is_described_and_valued_in_conf_alone() -> None:
    assert len(sections(RunConfig)) > 12
    assert description_findings(RunConfig) == []


def test_every_key_is_obeyed(checkout: Path) -> None:
    assert unread_findings(RunConfig, checkout / "src" / "dsv3", checkout / "conf") == []


def test_a_planted_undescribed_key_and_a_planted_default_are_found() -> None:
    assert sorted(description_findings(_Outer)) == [
        "_Inner.bare has no description",
        "_Outer.valued has a default in the schema",
    ]


@pytest.mark.parametrize(
    ("section_code", "user_code", "unread"),
    [
        ("", "def f(c):\n    c.inner, c.valued, c.described = 1, 2, 3", {"described", "valued"}),
        ("", "def f(c):\n    return c.described + c.valued", set()),
        ("@property\ndef twice(self):\n    return self.described", "c.valued", {"described"}),
        ("@property\ndef twice(self):\n    return self.described", "c.valued + c.twice", set()),
        (
            "@model_validator(mode='after')\ndef twice(self):\n    return self.described",
            "c.valued + c.twice",
            {"described"},
        ),
    ],
)
def test_a_planted_key_that_nothing_obeys_is_found(
    tmp_path: Path, section_code: str, user_code: str, unread: set[str]
) -> None:
    for file, code in {
        "config/part.py": section_code,
        "config/rules.py": "def rule(c):\n    return c.described > 0",
        "plan/description.py": "def tell(c):\n    return c.described, c.valued",
        "train/loop.py": f"{user_code}\nuse(c.inner, c.bare)",
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(code)
    found = {line.split()[0].split(".")[1] for line in unread_findings(_Outer, tmp_path, tmp_path)}
    assert found - {"inner"} == unread


@pytest.mark.parametrize("user_code", ["use(c.valued)", "use(c.bare)"])
def test_a_key_is_obeyed_if_one_that_follows_it_is(tmp_path: Path, user_code: str) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "loop.py").write_text(user_code)
    (tmp_path / "part.yaml").write_text("# Comment\nvalued: ${inner.described}\nbare: 3\n")
    found = {line.split()[0] for line in unread_findings(_Outer, tmp_path, tmp_path)}
    unread = {"_Outer.inner", "_Inner.described"} & found
    assert unread == (set() if "valued" in user_code else {"_Outer.inner", "_Inner.described"})
