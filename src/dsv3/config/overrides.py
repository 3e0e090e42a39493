"""What may stand on the command line: `key=value` words, checked before anything is composed."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dsv3.config.keys import Key, find, keys
from dsv3.config.options import RECIPE, Catalogue, Option
from dsv3.config.suggest import did_you_mean, listed
from dsv3.errors import Problem

ALIASES = {"balancing": "balance"}
"""Names accepted for a group; what is recorded is the group."""

_HYDRA = {
    "hydra/sweeper": "write -m with key=a,b or key=range(1,4)",
    "hydra.launcher": "write launcher.KEY=VALUE",
    "hydra.sweeper": "write -m with key=a,b or key=range(1,4)",
    "hydra.mode": "write -m",
    "hydra.run": "write run_root=DIR",
    "hydra.sweep": "write run_root=DIR",
    "hydra.searchpath": "write --config-dir DIR",
}


_RECIPE_REMEDY = "`train`, `plan`, `config show|diff|lint` take recipe=NAME, one a command"


@dataclass(frozen=True)
class Word:
    """One argument, taken apart but not yet understood."""

    written: str
    sign: str
    key: str
    value: str


@dataclass(frozen=True)
class Override:
    """A key and its values in canonical spelling: one value, or one for each arm of a sweep."""

    word: Word
    values: tuple[str, ...]
    is_sweep: bool

    @property
    def key(self) -> str:
        """Group or dotted key."""
        return self.word.key

    def settings(self) -> tuple[str, ...]:
        """`key=value` for each value."""
        return tuple(f"{self.key}={value}" for value in self.values)


def take_apart(written: str, catalogue: Catalogue) -> Word | Problem:
    """Split an argument and check its key against the groups and the schema."""
    name, equals, value = written.partition("=")
    sign = name[: len(name) - len(name.lstrip("+~"))]
    key = _unaliased(name[len(sign) :].strip())
    if sign.startswith("~"):
        return _deletion(written, key, catalogue)
    if not equals:
        shown = written if written.strip() else repr(written)
        return Problem(shown, "is not of the form key=value", _meant(written, catalogue))
    if re.split("[./]", key)[0] == "hydra":
        return Problem(written, "dsv3 only composes with Hydra", _hydra_remedy(key, catalogue))
    if "@" in key:
        group = key.partition("@")[0]
        return Problem(written, "an option has one place", f"write {group}={value}")
    return _unknown(written, key, value, catalogue) or Word(written, sign, key, value)


def _unknown(written: str, key: str, value: str, catalogue: Catalogue) -> Problem | None:
    """What is wrong with a key that is no group and not in the schema, or stands for a group."""
    if (group := key.replace(".", "/")) != key and value in catalogue.get(group, ()):
        return Problem(written, f"{value} is an option of a group", f"write {group}={value}")
    if key in catalogue or find(key) is not None:
        return None
    names = [
        *catalogue,
        *(k.path for k in keys().values() if "*" not in k.path and not k.is_section),
    ]
    remedy = did_you_mean(key, names, suffix=f"={value}") or _shows_all(key)
    return Problem(written, f"there is no key {key!r}", remedy)


def text_key(word: Word, catalogue: Catalogue) -> Key | None:
    """The schema's key if this word sets a text, whose value need not obey the override grammar."""
    key = None if word.key in catalogue else find(word.key)
    return key if key is not None and key.kind is str and not key.choices else None


def home_expanded(value: str) -> str:
    """`~/...` as a path; a shell leaves it alone behind `data.path=`."""
    return str(Path(value).expanduser()) if value.startswith("~/") else value


def unreadable(word: Word, reason: str) -> Problem:
    """The value breaks the override grammar, or a function in it failed for `reason`."""
    if reason:
        return Problem(word.written, reason)
    key = find(word.key)
    rule = "cannot be read" if key is None else f"must be {key.type_in_words}"
    return Problem(word.written, rule, f"quote what is special in it: \"{word.key}='...'\"")


def check(override: Override, catalogue: Catalogue, *, sweeping: bool) -> Iterator[Problem]:
    """Rules that a single override can break on its own."""
    written = override.word.written
    if override.key == RECIPE:
        yield Problem(written, "a recipe is a sweep, and here is one run wanted", _RECIPE_REMEDY)
        return
    if not override.values:
        yield Problem(written, "stands for no value at all", "check the range or the pattern")
    if override.is_sweep and not sweeping:
        remedy = "add -m to run one arm for each value"
        if text_key(override.word, catalogue) is not None:
            remedy += f", or quote it to mean one text: \"{override.key}='{override.word.value}'\""
        yield Problem(written, f"stands for {len(override.values)} values", remedy)
    for value in override.values:
        if override.key in catalogue:
            written = override.word.written
            yield from check_option(override.key, value, written, catalogue[override.key])
        else:
            yield from _check_kind(override, value)


def check_option(
    group: str, value: str, written: str, options: Mapping[str, Option]
) -> Iterator[Problem]:
    """What is wrong with the option `value` of a group, which stands in the word `written`."""
    if value.startswith("["):
        several = value.strip("[]").replace(" ", "")
        rule = f"a list would merge several options of {group} into one configuration"
        yield Problem(written, rule, f"to run an arm for each write -m {group}={several}")
    elif value not in options:
        remedy = did_you_mean(value, options)
        choice = f"options: {listed(options)}"
        setting = f"{group}={value}"
        rule = f"{group} has no option {value!r}"
        yield Problem(setting, rule, f"{remedy} ({choice})" if remedy else choice)


def _check_kind(override: Override, value: str) -> Iterator[Problem]:
    key = find(override.key)
    if key is not None and key.kind in (int, float) and value.lower() in ("true", "false"):
        yield Problem(f"{override.key}={value}", f"must be {key.type_in_words}")


def _unaliased(key: str) -> str:
    head, separator, rest = re.match(r"([^.@/]*)([.@/]?)(.*)", key, re.DOTALL).groups()  # type: ignore[union-attr]
    return f"{ALIASES.get(head, head)}{separator}{rest}"


def _shows_all(key: str) -> str:
    section = find(key.rpartition(".")[0])
    if section is not None and section.is_section:
        return f"`dsv3 config show -p {section.path}` prints those there are"
    return "`dsv3 config show` prints all"


def _deletion(written: str, key: str, catalogue: Catalogue) -> Problem:
    key = key.partition("=")[0]
    if key in catalogue:
        off = [name for name in ("none", "off") if name in catalogue[key]]
        remedy = f"write {key}={off[0]}" if off else f"options: {listed(catalogue[key])}"
    else:
        remedy = "set it to null where the key allows it"
    return Problem(written, "no part of a configuration can be taken out", remedy)


def _meant(word: str, catalogue: Catalogue) -> str:
    """`moe_tiny` alone probably means `model=moe_tiny`."""
    meant = [f"{group}={word}" for group, options in catalogue.items() if word in options]
    return f"did you mean {' or '.join(meant)}?" if meant else "write, for example, seed=2"


def _hydra_remedy(key: str, catalogue: Catalogue) -> str:
    if key.startswith("hydra/launcher"):
        return f"write launcher=NAME (options: {listed(catalogue['launcher'])})"
    matching = [remedy for prefix, remedy in _HYDRA.items() if key.startswith(prefix)]
    return matching[0] if matching else "leave it out; `dsv3 train --help` lists the options"
