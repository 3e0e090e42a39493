"""`parallelism`: how many ranks there are and what each of them holds."""

from typing import Literal

from dsv3.config.section import Section, field

PipelineSchedule = Literal["1f1b", "dualpipev"]
PARTS_PER_STAGE: dict[PipelineSchedule, int] = {"1f1b": 1, "dualpipev": 2}


def fewest_micro_batches(schedule: PipelineSchedule, stages: int) -> int:
    """Micro batches per rank and step from which on a schedule has a steady state.

    One for each part: so many are under way when the first backward begins.
    """
    return PARTS_PER_STAGE[schedule] * stages


class ParallelismConfig(Section):
    """World = pipeline x expert x expert-data ranks; dense weights see expert x expert-data."""

    pipeline_parallel_size: int = field("Pipeline stages.", gt=0)
    expert_parallel_size: int = field("Ranks that share out the experts of a layer.", gt=0)
    expert_data_parallel_size: int = field("Replicas of every expert.", gt=0)
    pipeline_schedule: PipelineSchedule = field(
        "Order of forwards and backwards in a pipeline: 1f1b has one part of the model per stage,"
        " dualpipev two (the first rank begins and ends it)."
    )
    zero_stage: Literal[1, 2] = field("ZeRO stage: 1 shards optimizer state, 2 gradients too.")

    @property
    def data_parallel_size(self) -> int:
        """Ranks that see different samples: expert x expert-data."""
        return self.expert_parallel_size * self.expert_data_parallel_size

    @property
    def parts(self) -> int:
        """Contiguous ranges of layers that the model is cut into."""
        return self.pipeline_parallel_size * PARTS_PER_STAGE[self.pipeline_schedule]

    @property
    def fewest_micro_batches(self) -> int:
        """Micro batches that a rank's share of a step is cut into, where it has so many."""
        return fewest_micro_batches(self.pipeline_schedule, self.pipeline_parallel_size)

    @property
    def world_size(self) -> int:
        """All ranks of the run."""
        return self.pipeline_parallel_size * self.data_parallel_size
