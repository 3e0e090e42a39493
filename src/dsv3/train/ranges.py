"""How well tensors fit FP8: the ranges that layers note, over all ranks, for a step's line."""

from collections.abc import Mapping
from typing import Any

from dsv3.ops.gemm_log import Range, Role
from dsv3.train.ranks import Ranks

Ranges = Mapping[tuple[str, Role], Range]
"""By layer and operand."""

_DIGITS = 4


def worst_of_ranks(ranges: Ranges, ranks: Ranks) -> Ranges:
    """The ranges of all ranks, the worse where several hold a layer (collective)."""
    # Text: JSON has no infinity, and an operand may.
    own = [[*key, *map(repr, found)] for key, found in ranges.items()]
    worst: dict[tuple[str, Role], Range] = {}
    for of_rank in ranks.all_gather(own):
        for layer, role, *figures in of_rank:
            found = Range(*map(float, figures))
            known = worst.get((layer, role))
            worst[layer, role] = found if known is None else known.joined(found)
    return worst


def ranges_record(ranges: Ranges) -> dict[str, Any]:
    """What a step's line says: the worst shares, and the figures of every operand of every layer.

    In the order of `Range`, as lists, for a model has thousands. Empty if no layer noted any.
    """
    if not ranges:
        return {}
    by_layer: dict[str, dict[str, list[float]]] = {}
    for (layer, role), found in sorted(ranges.items()):
        by_layer.setdefault(layer, {})[role] = [_short(value) for value in found]
    return {
        "fp8_overflow": max(found.overflow for found in ranges.values()),
        "fp8_underflow": max(found.underflow for found in ranges.values()),
        "fp8_ranges": by_layer,
    }


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
