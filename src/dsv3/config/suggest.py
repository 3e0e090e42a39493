"""Did-you-mean: the name a person probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches

CUTOFF = 0.6


def closest(word: str, names: Iterable[str]) -> str | None:
    """Name nearest to `word`, or None when nothing is near.

    A dotted key is also found by its last part: `lr` means `schedule.lr`, the only key ending so.
    """
    names = list(names)
    near = get_close_matches(word, names, n=1, cutoff=CUTOFF)
    if near and near[0].count(".") == word.count("."):
        return near[0]
    return _by_last_part(word, names) or (near[0] if near else None)


def did_you_mean(word: str, names: Iterable[str], *, suffix: str = "") -> str:
    """Remedy in words; empty when nothing is near."""
    name = closest(word, names)
    return f"did you mean {name}{suffix}?" if name is not None else ""


def listed(names: Iterable[object]) -> str:
    """Names for a sentence: `a, b, c`."""
    return ", ".join(str(name) for name in names)


def _by_last_part(word: str, names: list[str]) -> str | None:
    last = word.rpartition(".")[2]
    for wanted in (
        last,
        *get_close_matches(last, [_last(name) for name in names], n=1, cutoff=0.8),
    ):
        ending = [name for name in names if _last(name) == wanted]
        if len(ending) == 1:
            return ending[0]
    return None


def _last(name: str) -> str:
    return name.rpartition(".")[2]
