"""Files and functions stay readable, public names are explained, and the check sees a violation."""

from pathlib import Path

import pytest

from architecture.shape import docstring_findings, size_findings
from architecture.source import sources


@pytest.mark.parametrize("directory", ["src", "bench"])
def test_files_and_functions_stay_small(checkout: Path, directory: str) -> None:
    assert sources(checkout / directory)
    assert size_findings(checkout / directory) == []


def test_everything_public_is_explained(checkout: Path) -> None:
    assert docstring_findings(checkout / "src") == []


def test_a_planted_long_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text("x = 1\n" * 401)
    (tmp_path / "full.py").write_text("x = 1\n" * 400)
    assert size_findings(tmp_path) == ["long.py: 401 lines, 400 at most"]


def test_a_planted_long_function_is_found(tmp_path: Path) -> None:
    body = "    x = 1\n" * 79
    (tmp_path / "full.py").write_text(f"def full():\n{body}")
    (tmp_path / "long.py").write_text(f"@cache\ndef long():\n{body}")
    assert size_findings(tmp_path) == ["long.py:2 long has 81 lines, 80 at most"]


def test_planted_missing_docstrings_are_found(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text(
        "def public(): ...\n"
        "def _private(): ...\n"
        "class Thing:\n"
        "    def __init__(self): ...\n"
        "    @property\n"
        "    def size(self): ...\n"
        "    @override\n"
        "    def known(self): ...\n"
    )
    assert sorted(docstring_findings(tmp_path)) == [
        "bare.py: module without a docstring",
        "bare.py:1 public without a docstring",
        "bare.py:3 Thing without a docstring",
        "bare.py:6 size without a docstring",
    ]
