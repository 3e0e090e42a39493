"""`parallelism`: how many ranks there are and what each of them holds."""

from typing import Literal

from dsv3.config.section import Section, field


class ParallelismConfig(Section):
    """World = pipeline x expert x expert-data ranks; dense weights see expert x expert-data."""

    pipeline_parallel_size: int = field("Pipeline stages.", gt=0)
    expert_parallel_size: int = field("Ranks that share out the experts of a layer.", gt=0)
    expert_data_parallel_size: int = field("Replicas of every expert.", gt=0)
    zero_stage: Literal[1, 2] = field("ZeRO stage: 1 shards optimizer state, 2 gradients too.")

    @property
    def data_parallel_size(self) -> int:
        """Ranks that see different samples: expert x expert-data."""
        return self.expert_parallel_size * self.expert_data_parallel_size

    @property
    def world_size(self) -> int:
        """All ranks of the run."""
        return self.pipeline_parallel_size * self.data_parallel_size
