"""The cut of layers into parts, against every cut there is."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3.parallel.stages import cut, cut_by_sums


def cheapest(costs: list[int], parts: int) -> int:
    """The lowest cost of the costliest part, over all cuts."""
    inner = combinations(range(1, len(costs)), parts - 1)
    edges = ((0, *between, len(costs)) for between in inner)
    return min(max(sum(costs[a:b]) for a, b in pairwise(cut_at)) for cut_at in edges)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=9), st.data())
def test_no_cut_has_a_cheaper_costliest_part(costs: list[int], data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, len(costs)))
    found = cut(costs, parts)
    assert [layer for part in found for layer in part] == list(range(len(costs)))
    assert len(found) == parts
    assert min(map(len, found)) > 0
    assert max(sum(costs[layer] for layer in part) for part in found) == cheapest(costs, parts)


@pytest.mark.parametrize(("layers", "parts"), [(61, 16), (60, 32), (4, 4), (7, 3), (5, 1), (1, 1)])
def test_equal_layers_are_cut_evenly(layers: int, parts: int) -> None:
    lengths = [len(part) for part in cut([5] * layers, parts)]
    assert max(lengths) - min(lengths) <= 1


def test_costly_ends_have_fewer_layers() -> None:
    assert cut([1, 1, 1, 1, 1, 1, 1, 4], 3) == [range(4), range(4, 7), range(7, 8)]
    assert cut([9, 1, 1, 1], 2) == [range(1), range(1, 4)]


def test_layers_without_cost_are_held_too() -> None:
    assert cut([0, 0, 0], 3) == [range(1), range(1, 2), range(2, 3)]


def test_layers_are_not_walked_one_by_one() -> None:
    layers = 10**12
    found = cut_by_sums(lambda count: 3 * count, layers, 8)
    assert {len(part) for part in found} == {layers // 8}
