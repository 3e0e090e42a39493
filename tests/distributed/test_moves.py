"""A checkpoint of two or four ranks in every other layout: each element where it belongs."""

import pytest
import torch

from distributed.checkpoint_cases import LOADED
from distributed.state import assembled

pytestmark = pytest.mark.distributed

MOVES = [(world, name) for world in LOADED for name in LOADED[world]]


@pytest.fixture(params=MOVES, ids=lambda pair: f"{pair[0]} ranks {pair[1]}")
def moved(request, reports):
    """Name of the layout that loads, whether it is the one that saved, the reports of its ranks."""
    world, name = request.param
    return name, name == next(iter(LOADED[world])), reports(world)["moves"]


def test_every_element_is_loaded_where_it_belongs(moved):
    name, _, of_ranks = moved
    saved, loaded = assembled(of_ranks, "saved"), assembled(of_ranks, f"loaded {name}")
    assert saved.keys() == loaded.keys()
    assert len({key.split("/")[0] for key in saved}) == 5
    assert [key for key in saved if not torch.equal(saved[key], loaded[key])] == []


def test_the_same_layout_goes_on_bit_for_bit_and_others_go_the_same_way(moved):
    name, same_layout, of_ranks = moved
    for report in of_ranks:
        straight, went_on = report.values["straight on"], report.values[name]
        if same_layout:
            assert straight == went_on
        else:
            # Another order of sums; a model in BF16 rounds its weights.
            tolerance = 5e-3 if "bf16" in name else 1e-6
            assert went_on[0]["lm"] == pytest.approx(straight[0]["lm"], rel=tolerance)
            assert went_on[1] == pytest.approx(straight[1], rel=10 * tolerance)
    if same_layout:
        left, right = assembled(of_ranks, "straight on"), assembled(of_ranks, f"went on {name}")
        assert [key for key in left if not torch.equal(left[key], right[key])] == []
