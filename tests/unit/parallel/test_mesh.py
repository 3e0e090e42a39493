"""Rank lists: groups are partitions, and the ranks of an expert group share the experts out."""

import pytest

from dsv3.config.parallelism import ParallelismConfig
from dsv3.parallel.mesh import Place, place_of

LAYOUTS = [(1, 1, 1), (1, 2, 1), (1, 1, 4), (1, 2, 2), (1, 4, 2), (3, 2, 2), (16, 8, 4)]


def layout(pipeline: int, expert: int, replicas: int) -> ParallelismConfig:
    return ParallelismConfig(
        pipeline_parallel_size=pipeline,
        expert_parallel_size=expert,
        expert_data_parallel_size=replicas,
        pipeline_schedule="1f1b",
        zero_stage=1,
    )


def test_ep2_dp2_by_hand() -> None:
    places = [place_of(layout(1, 2, 2), rank) for rank in range(4)]
    assert [list(place.expert_ranks) for place in places] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [list(place.expert_data_ranks) for place in places] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert [place.local_experts(6) for place in places] == 2 * [range(3), range(3, 6)]
    assert [place.data_rank for place in places] == [0, 1, 2, 3]


def test_the_second_stage_by_hand() -> None:
    place = place_of(layout(2, 2, 2), 5)
    assert place == Place(5, 1, range(4, 8), range(4, 6), range(5, 8, 2), range(1, 8, 4))
    assert (place.data_rank, place.expert_rank) == (1, 1)


@pytest.mark.parametrize("sizes", LAYOUTS)
def test_groups_are_partitions_of_the_ranks(sizes: tuple[int, int, int]) -> None:
    mesh = layout(*sizes)
    places = [place_of(mesh, rank) for rank in range(mesh.world_size)]
    for of, size in (
        (lambda p: p.data_ranks, mesh.data_parallel_size),
        (lambda p: p.expert_ranks, mesh.expert_parallel_size),
        (lambda p: p.expert_data_ranks, mesh.expert_data_parallel_size),
        (lambda p: p.pipeline_ranks, mesh.pipeline_parallel_size),
    ):
        groups = {tuple(of(place)) for place in places}
        assert all(len(group) == size for group in groups)
        assert sorted(rank for group in groups for rank in group) == list(range(mesh.world_size))
        assert all(place.rank in of(place) for place in places)


@pytest.mark.parametrize("sizes", LAYOUTS)
def test_an_expert_group_holds_each_expert_once_and_replicas_hold_the_same(
    sizes: tuple[int, int, int],
) -> None:
    mesh = layout(*sizes)
    experts = 3 * mesh.expert_parallel_size
    for rank in range(mesh.world_size):
        place = place_of(mesh, rank)
        held = [place_of(mesh, r).local_experts(experts) for r in place.expert_ranks]
        assert [expert for part in held for expert in part] == list(range(experts))
        replicas = [place_of(mesh, r) for r in place.expert_data_ranks]
        assert {r.local_experts(experts) for r in replicas} == {place.local_experts(experts)}
        assert {r.stage for r in replicas} == {place.stage}


def test_a_rank_or_a_number_of_experts_that_does_not_fit_is_a_defect() -> None:
    with pytest.raises(AssertionError, match="rank=4"):
        place_of(layout(1, 2, 2), 4)
    with pytest.raises(AssertionError, match="n_routed_experts=5"):
        place_of(layout(1, 2, 2), 0).local_experts(5)
