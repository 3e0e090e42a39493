"""Where a sequence of layers is cut so that the costliest part costs as little as possible."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise


def cut(costs: Sequence[int], parts: int) -> list[range]:
    """Contiguous, non-empty ranges of layers, the costliest as cheap as it can be."""
    return cut_by_sums([0, *accumulate(costs)].__getitem__, len(costs), parts)


def cut_by_sums(before: Callable[[int], int], layers: int, parts: int) -> list[range]:
    """`cut` for layers of which only the cost of the first n, `before(n)`, is written down.

    A binary search for the lowest bound on a part that can be kept. Below that bound the parts are
    as even as the bound lets them: each takes its share of what is left, to the nearest layer, an
    exact tie to the earlier one. Whole numbers, so that every rank finds the same cut.
    """
    assert 1 <= parts <= layers, f"{parts=} {layers=}"
    bound, enough = 0, before(layers)
    while bound < enough:  # bisect takes no range beyond what an index can be
        middle = (bound + enough) // 2
        if _starts(before, layers, parts, middle) is None:
            bound = middle + 1
        else:
            enough = middle
    starts = _starts(before, layers, parts, bound)
    assert starts is not None, f"{bound=}"
    edges = [0]
    for part in range(1, parts):
        begin = edges[-1]
        fits = bisect_right(range(layers + 1), before(begin) + bound, key=before) - 1
        least = max(starts[part], begin + 1)
        most = min(fits, layers - (parts - part))
        edges.append(min(max(_even(before, begin, layers, parts - part + 1), least), most))
    return [range(begin, end) for begin, end in pairwise([*edges, layers])]


def _starts(before: Callable[[int], int], layers: int, parts: int, bound: int) -> list[int] | None:
    """Where each part starts at the earliest if it and those after it keep the bound; or None."""
    starts, end = [layers] * parts, layers
    for part in reversed(range(parts)):
        begin = bisect_left(range(end), before(end) - bound, key=before)
        if begin == end:
            return None  # a single layer is beyond the bound
        starts[part] = end = max(begin, part)
    return starts if end == 0 else None


def _even(before: Callable[[int], int], begin: int, layers: int, parts: int) -> int:
    """Where the first of `parts` parts would end, were it to cost their mean."""
    # Times `parts`, to stay with whole numbers.
    goal = before(begin) * (parts - 1) + before(layers)
    end = bisect_left(range(layers), goal, key=lambda layer: before(layer) * parts)
    above, below = before(end) * parts - goal, goal - before(max(end - 1, 0)) * parts
    return end - 1 if below <= above else end
