"""Pipeline methods: the report's table 2 comes out of the order in which ranks work."""

import itertools

import pytest

from dsv3.plan.methods import METHODS, ChunkTimes, bubble_s, copies_of_parameters, orders
from dsv3.plan.timeline import run

EVEN = ChunkTimes(forward=1, backward=2, weights=1, pair=3)
OVERLAPPED = ChunkTimes(forward=1, backward=2, weights=1, pair=2.5)
UNEVEN = ChunkTimes(forward=1, backward=2.2, weights=0.8, pair=2.7)
SIZES = [(2, 8), (4, 16), (8, 20), (16, 40)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("ranks", "micro_batches"), SIZES)
def test_every_rank_idles_as_the_table_says(method, ranks, micro_batches) -> None:
    found = run(method, ranks, micro_batches, EVEN)
    assert found.bubbles_s == pytest.approx([bubble_s(method, ranks, EVEN)] * ranks)


@pytest.mark.parametrize("method", ["1f1b", "zb1p"])
@pytest.mark.parametrize(("ranks", "micro_batches"), SIZES)
def test_the_table_holds_for_uneven_chunks_of_the_one_way_methods(
    method, ranks, micro_batches
) -> None:
    found = run(method, ranks, micro_batches, UNEVEN)
    assert found.bubbles_s == pytest.approx([bubble_s(method, ranks, UNEVEN)] * ranks)


@pytest.mark.parametrize("method", ["dualpipe", "dualpipev"])
@pytest.mark.parametrize(("ranks", "micro_batches"), SIZES)
@pytest.mark.parametrize("times", [OVERLAPPED, UNEVEN])
def test_the_table_bounds_the_two_way_methods(method, ranks, micro_batches, times) -> None:
    found = run(method, ranks, micro_batches, times)
    assert max(found.bubbles_s) <= bubble_s(method, ranks, times) + 1e-9
    if times is OVERLAPPED and ranks > 2:
        # The first rank idles exactly as long.
        assert max(found.bubbles_s) == pytest.approx(bubble_s(method, ranks, times))


@pytest.mark.parametrize("method", METHODS)
def test_every_chunk_goes_forward_and_backward_once(method) -> None:
    ranks, micro_batches = 4, 12
    chunks = 2 if method.startswith("dual") else 1
    each = micro_batches // 2 if method == "dualpipe" else micro_batches
    for order in orders(method, ranks, micro_batches):
        forward, backward, weights = [], [], []
        for kind, places in order:
            if kind in "FP":
                forward.append(places[0])
            if kind in "BIP":
                backward.append(places[-1])
            if kind == "W":
                weights.append(places[0])
        everything = sorted(itertools.product(range(chunks), range(each)))
        assert sorted(forward) == sorted(backward) == everything
        split = [places[0] for kind, places in order if kind == "I"]
        assert sorted(weights) == sorted(split)


def test_dualpipe_holds_the_parameters_twice() -> None:
    assert [copies_of_parameters(method) for method in METHODS] == [1, 1, 2, 1]


def test_too_few_micro_batches_have_no_steady_state() -> None:
    with pytest.raises(AssertionError, match="too few"):
        orders("dualpipev", 4, 4)
