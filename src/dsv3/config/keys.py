"""Every key of the schema, with its type in words: for messages, completion and the reference."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from dsv3.config.root import RunConfig
from dsv3.config.section import Section

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


@dataclass(frozen=True)
class Key:
    """One key; the items of a list stand under `*`, as in `schedule.lr_curve.phases.*.until`."""

    path: str
    kind: type
    choices: tuple[str, ...]
    nullable: bool
    bounds: str
    description: str

    @property
    def is_section(self) -> bool:
        """Whether further keys stand below this one."""
        return self.kind is Section

    @property
    def type_in_words(self) -> str:
        """What the value has to be, for a sentence that begins with "must be"."""
        words = self._kind_in_words()
        words = f"{words} {self.bounds}" if self.bounds else words
        return f"{words}, or null" if self.nullable else words

    def _kind_in_words(self) -> str:
        if self.choices:
            one_of = "" if len(self.choices) == 1 else "one of "
            return one_of + ", ".join(self.choices)
        if self.is_section:
            return "a section with keys of its own"
        return _WORDS.get(self.kind, "a list")


@cache
def keys() -> dict[str, Key]:
    """All keys in the order of the schema, by path."""
    return {key.path: key for key in _walk(RunConfig, "")}


def find(path: str) -> Key | None:
    """Key that `path` (with list positions as numbers) refers to, or None."""
    return keys().get(".".join("*" if part.isdecimal() else part for part in path.split(".")))


def _walk(section: type[Section], prefix: str) -> Iterator[Key]:
    for name, info in section.model_fields.items():
        path = prefix + name
        kind, nullable = _without_none(info.annotation)
        yield _key(path, kind, nullable, info)
        if get_origin(kind) is tuple and _is_section(get_args(kind)[0]):
            yield from _walk(get_args(kind)[0], f"{path}.*.")
        elif get_origin(kind) is dict:
            yield from _entries(path, kind)
        elif _is_section(kind):
            yield from _walk(kind, f"{path}.")


def _entries(path: str, kind: Any) -> Iterator[Key]:
    """Keys of a mapping whose names are listed in the schema."""
    names, value = get_args(kind)
    of_value = FieldInfo.from_annotation(value)
    for name in get_args(names):
        described = f"That of `{name}`; left out, it has none."
        of_value.description = described
        yield _key(f"{path}.{name}", of_value.annotation, nullable=False, info=of_value)


def _key(path: str, kind: Any, nullable: bool, info: FieldInfo) -> Key:
    choices: tuple[str, ...] = ()
    if get_origin(kind) is Literal:
        choices = tuple(str(choice) for choice in get_args(kind))
        kind = type(get_args(kind)[0])
    elif get_origin(kind) is tuple:
        kind = tuple
    elif get_origin(kind) is dict or _is_section(kind):
        kind = Section
    return Key(path, kind, choices, nullable, _bounds(info), info.description or "")


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if get_origin(annotation) not in (Union, UnionType):
        return annotation, False
    members = [member for member in get_args(annotation) if member is not NoneType]
    assert len(members) == 1, f"a key has one type or null, not {annotation=}"
    return members[0], True


def _bounds(info: FieldInfo) -> str:
    found = [
        f"{sign} {_number(getattr(rule, name))}"
        for rule in info.metadata
        for name, sign in _BOUNDS.items()
        if getattr(rule, name, None) is not None
    ]
    if any(getattr(rule, "min_length", None) for rule in info.metadata):
        found.append("that is not empty")
    return " and ".join(found)


def _number(value: float) -> str:
    """`2^63` reads better than its nineteen digits."""
    if isinstance(value, int) and value >= 2**31 and value & (value - 1) == 0:
        return f"2^{value.bit_length() - 1}"
    return str(value)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)
