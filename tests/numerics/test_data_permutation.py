"""The computed permutation: a bijection, well mixed, and the same for ever."""

import hashlib
import itertools
from collections import Counter

import pytest

from dsv3.data.permutation import Permutation


@pytest.mark.parametrize("size", [*range(1, 40), 100, 1_023, 1_024, 1_025, 5_000])
def test_it_is_a_bijection(size):
    for seed, epoch in ((0, 0), (0, 1), (2**63 - 1, 5)):
        permutation = Permutation(size, seed=seed, epoch=epoch)
        assert sorted(map(permutation, range(size))) == list(range(size))


def test_seeds_and_epochs_give_different_orders():
    orders = {
        tuple(map(Permutation(50, seed=seed, epoch=epoch), range(50)))
        for seed, epoch in itertools.product(range(20), range(20))
    }
    assert len(orders) == 400  # also (1, 11) and (11, 1): no concatenated digits


@pytest.mark.parametrize("size", [3, 4])
def test_all_orders_of_a_few_are_equally_likely(size):
    draws = 4_800
    orders = Counter(
        tuple(map(Permutation(size, seed=seed, epoch=0), range(size))) for seed in range(draws)
    )
    cells = {3: 6, 4: 24}[size]
    expected = draws / cells
    chi_square = sum((count - expected) ** 2 / expected for count in orders.values())
    # 99.9 % quantiles of chi-square with 5 and 23 degrees of freedom; the seeds are fixed
    assert len(orders) == cells and chi_square < {3: 20.5, 4: 49.7}[size]


def test_every_place_is_equally_likely_and_neighbours_do_not_stay_together():
    size, seeds = 37, 3_000
    places, gaps = Counter(), Counter()
    for seed in range(seeds):
        permutation = Permutation(size, seed=seed, epoch=0)
        first, second = permutation(0), permutation(1)
        places[first] += 1
        gaps[(second - first) % size] += 1
    for counts, cells in ((places, size), (gaps, size - 1)):
        expected = seeds / cells
        chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
        assert len(counts) == cells and chi_square < 68  # 99.9 % with 36 degrees of freedom


def test_a_huge_size_needs_no_memory():
    size = 10**15
    permutation = Permutation(size, seed=1, epoch=0)
    found = [permutation(i) for i in range(1_000)]
    assert len(set(found)) == 1_000 and all(0 <= place < size for place in found)
    assert 0.45 < sum(found) / len(found) / size < 0.55  # standard deviation of the mean: 0.009


def test_the_order_is_pinned():
    """A run resumed by a later version must go on in the same order."""
    order = [Permutation(1_000, seed=1, epoch=2)(i) for i in range(1_000)]
    digest = hashlib.sha256(repr(order).encode()).hexdigest()
    assert digest[:16] == "3b14f12056633414"
