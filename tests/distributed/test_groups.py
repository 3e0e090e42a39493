"""Rank lists against the groups that DeepSpeed really makes, and JSON between ranks."""

import pytest

from distributed.group_cases import layout
from dsv3.parallel.mesh import place_of

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_mesh_lists_the_groups_that_deepspeed_makes(reports, world):
    for rank, report in enumerate(reports(world)["groups"]):
        assert set(report.values) == {str(n) for n in (1, 2, 4) if world % n == 0}
        for size, found in report.values.items():
            place = place_of(layout(int(size), world), rank)
            assert found["expert"] == list(place.expert_ranks)
            assert found["expert_data"] == list(place.expert_data_ranks)
            assert found["made_once"]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_exchange_json_and_fail_together(reports, world):
    expected = [{"rank": rank, "text": "\u00e9" * 100 * rank} for rank in range(world)]
    for rank, report in enumerate(reports(world)["collective"]):
        assert report.values["gathered"] == expected
        assert report.values["nothing"] == [None] * world
        theirs = f"capacity: rank {world - 1}: the disk is full"
        own = "capacity: the disk is full"
        assert report.values["outcome"] == (own if rank == world - 1 else theirs)
