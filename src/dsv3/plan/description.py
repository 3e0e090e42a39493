"""What a run is, in the few numbers one wants to see before anything starts."""

from dataclasses import dataclass

from dsv3.config.parallelism import ParallelismConfig
from dsv3.config.root import RunConfig
from dsv3.plan.parameters import count_parameters
from dsv3.plan.quantities import count, plural


@dataclass(frozen=True)
class Description:
    """Size, length and layout of a run; `active` is body + head, MTP not included."""

    name: str
    total: int
    active: int
    tokens: int
    steps: int
    world_size: int
    layout: str

    def __str__(self) -> str:
        return (
            f"{self.name}: {count(self.total)} parameters, {count(self.active)} active per token;"
            f" {count(self.tokens)} token{'' if self.tokens == 1 else 's'}"
            f" in {plural(self.steps, 'step')};"
            f" {plural(self.world_size, 'rank')}"
            + (f" ({self.layout})" if self.world_size > 1 else "")
        )


def describe(config: RunConfig) -> Description:
    """Describe the run of `config`, from the configuration alone."""
    counts = count_parameters(config.model)
    return Description(
        name=config.model.name,
        total=counts.total,
        active=counts.active,
        tokens=config.schedule.total_tokens,
        steps=config.schedule.num_steps,
        world_size=config.parallelism.world_size,
        layout=describe_layout(config.parallelism),
    )


def describe_layout(layout: ParallelismConfig) -> str:
    """`16 pipeline x 8 expert x 1 expert-data`: the factors of the world size."""
    return (
        f"{layout.pipeline_parallel_size} pipeline x {layout.expert_parallel_size} expert"
        f" x {layout.expert_data_parallel_size} expert-data"
    )
