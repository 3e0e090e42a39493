"""Where configurations differ, key by key."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Leaves = Mapping[str, Any]
"""Dotted key -> value that holds no further keys."""

ABSENT = "-"
"""Stands for a key that a configuration does not have, as below a null section."""


def leaves(data: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested plain data; items of a list count as keys."""
    if isinstance(data, dict):
        items = list(data.items())
    elif isinstance(data, list) and data:
        items = list(enumerate(data))
    else:
        yield prefix, data
        return
    for name, value in items:
        yield from leaves(value, f"{prefix}.{name}" if prefix else f"{name}")


def differences(configurations: Sequence[Any]) -> dict[str, list[Any]]:
    """Keys whose values are not the same everywhere, with the value in each configuration."""
    flat = [dict(leaves(data)) for data in configurations]
    keys = dict.fromkeys(key for one in flat for key in one)
    table = {key: [one.get(key, ABSENT) for one in flat] for key in keys}
    return {key: values for key, values in table.items() if any(v != values[0] for v in values)}
