"""Rank lists: who shares dense weights, who shares out the experts, who replicates them.

Stages are the slowest index of a rank and the experts of one replica the fastest, as DeepSpeed's
own groups have it: `engine` creates these groups and checks that they are the ones listed here.
"""

from dataclasses import dataclass

from dsv3.config.parallelism import ParallelismConfig


@dataclass(frozen=True)
class Place:
    """Where a rank stands in the layout: the groups it belongs to, as global ranks."""

    rank: int
    stage: int
    data_ranks: range  # of the stage: they hold the same dense weights and see different samples
    expert_ranks: range  # together one replica of all experts: tokens travel between these
    expert_data_ranks: range  # the same experts: their gradients are reduced over these
    pipeline_ranks: range  # by stage: together one model, for the same samples

    @property
    def data_rank(self) -> int:
        """Which share of every global batch is this rank's."""
        return self.data_ranks.index(self.rank)

    @property
    def expert_rank(self) -> int:
        """Which share of the experts is this rank's."""
        return self.expert_ranks.index(self.rank)

    def local_experts(self, n_routed_experts: int) -> range:
        """Global ids of the experts this rank holds."""
        shares = len(self.expert_ranks)
        assert n_routed_experts % shares == 0, f"{n_routed_experts=} {shares=}"
        each = n_routed_experts // shares
        return range(self.expert_rank * each, (self.expert_rank + 1) * each)


def place_of(layout: ParallelismConfig, rank: int) -> Place:
    """The place of a global rank, 0 to `layout.world_size` - 1."""
    assert 0 <= rank < layout.world_size, f"{rank=} {layout.world_size=}"
    ranks, experts = layout.data_parallel_size, layout.expert_parallel_size
    stage = rank // ranks
    first = stage * ranks
    expert_rank = (rank - first) % experts
    return Place(
        rank=rank,
        stage=stage,
        data_ranks=range(first, first + ranks),
        expert_ranks=range(rank - expert_rank, rank - expert_rank + experts),
        expert_data_ranks=range(first + expert_rank, first + ranks, experts),
        pipeline_ranks=range(rank - first, layout.world_size, ranks),
    )
