"""Did-you-mean: the names a person probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches

CUTOFF = 0.6
CUTOFF_OF_A_PART = 0.8
"""Stricter: a last part alone, like `lr`, is short and resembles much."""


def closest(word: str, names: Iterable[str]) -> list[str]:
    """Names nearest to `word`: one, or a few that are as near, or none.

    A dotted key is also found by its last part: `lr` means `schedule.lr`, `every_steps` may mean
    that of `checkpoint` or of `evaluation`. Within a section that exists only the last part counts:
    all its keys begin alike.
    """
    names = list(names)
    section, dot, last = word.rpartition(".")
    siblings = [name for name in names if dot and name.rpartition(".")[0] == section]
    if siblings:
        parts = [name.rpartition(".")[2] for name in siblings]
        near = get_close_matches(last, parts, n=1, cutoff=CUTOFF)
        return [f"{section}.{near[0]}"] if near else _by_last_part(word, names)
    near = get_close_matches(word, names, n=1, cutoff=CUTOFF)
    if near and near[0].count(".") == word.count("."):
        return near
    return _by_last_part(word, names) or near


def did_you_mean(word: str, names: Iterable[str], *, suffix: str = "") -> str:
    """Remedy in words; empty when nothing is near."""
    meant = " or ".join(f"{name}{suffix}" for name in closest(word, names))
    return f"did you mean {meant}?" if meant else ""


def listed(names: Iterable[object]) -> str:
    """Names for a sentence: `a, b, c`."""
    return ", ".join(str(name) for name in names)


def _by_last_part(word: str, names: list[str]) -> list[str]:
    parts = [name.rpartition(".")[2] for name in names]
    near = get_close_matches(word.rpartition(".")[2], parts, n=1, cutoff=CUTOFF_OF_A_PART)
    return [name for name, part in zip(names, parts, strict=True) if part in near][:3]
