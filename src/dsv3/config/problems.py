"""Findings of pydantic, in the words of the command line."""

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dsv3.config.keys import find, keys
from dsv3.config.suggest import did_you_mean
from dsv3.errors import Problem


def translate(error: ValidationError) -> Iterator[tuple[str, Problem]]:
    """Key and Problem of each finding, in the order of the schema."""
    for detail in error.errors(include_url=False):
        path = ".".join(str(part) for part in detail["loc"]).removesuffix(".[key]")
        yield path, _problem(path, detail)


def _problem(path: str, detail: ErrorDetails) -> Problem:
    setting = _setting(path, detail["input"])
    key = find(path)
    words = key.type_in_words if key is not None else "something else"
    match detail["type"]:
        case "extra_forbidden":
            return Problem(setting, "there is no such key", did_you_mean(path, _siblings(path)))
        case "missing":
            return Problem(path, "is missing", f"give it {words}")
        case "value_error":
            return Problem(path, str(detail["ctx"]["error"]))
        case "string_unicode":
            return Problem(setting, "must be UTF-8 text", "if it is, set LC_ALL=C.UTF-8")
        case "finite_number":
            return Problem(setting, "must be finite", f"give it {words}")
        case _:
            return Problem(setting, f"must be {words}", _nearest_choice(path, detail["input"]))


def _setting(path: str, value: Any) -> str:
    if isinstance(value, dict | list | tuple):
        return path
    return f"{path}={'null' if value is None else value}"


def _siblings(path: str) -> list[str]:
    """Keys of the same section first, then all: a suggestion should not leave the section."""
    section = path.rpartition(".")[0]
    near = [name for name in keys() if name.rpartition(".")[0] == section]
    return near or list(keys())


def _nearest_choice(path: str, value: Any) -> str:
    key = find(path)
    choices: Sequence[str] = () if key is None else key.choices
    return did_you_mean(f"{value}", choices) if len(choices) > 1 else ""
