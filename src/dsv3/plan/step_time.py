"""Seconds of an optimizer step and of a whole run, on given hardware.

As this program works: no forward beside a backward, no computing while rows travel, a backward that
is not split. What the busiest stage does, the bubble of its schedule, then gradients and weights.
"""

from dataclasses import dataclass
from functools import lru_cache

from dsv3.config.hardware import Hardware
from dsv3.config.root import RunConfig
from dsv3.parallel.schedule import global_part, parts_per_stage
from dsv3.plan.chunk_time import PartTime, part_times
from dsv3.plan.communication import reduction
from dsv3.plan.flops import training_flops_per_token
from dsv3.plan.memory import BYTES_PER_MOMENT, bytes_per_weight, stage_weights
from dsv3.plan.stages import layer_ranges

GRADIENT_BYTES, MASTER_BYTES = 4, 4


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step of full size, by what the busiest rank does; they add up to the step."""

    compute: float
    exchange: float
    bubble: float
    reduction: float
    optimizer: float
    micro_batches: int
    tokens: int

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.compute + self.exchange + self.bubble + self.reduction + self.optimizer


@dataclass(frozen=True)
class RunTime:
    """A whole run: steps of every size its batch has."""

    step: StepTime  # of full size
    seconds: float
    world_size: int
    tokens: int
    utilisation: float  # of the BF16 peak, by the FLOPs of `plan/flops.py`

    @property
    def gpu_hours(self) -> float:
        """Hours of all GPUs together."""
        return self.seconds * self.world_size / 3600

    @property
    def tokens_per_second_per_gpu(self) -> float:
        """Over the whole run."""
        return self.tokens / (self.seconds * self.world_size)


class Clock:
    """Step times of one configuration on one kind of GPU."""

    def __init__(self, config: RunConfig, hardware: Hardware) -> None:
        self._config, self._hardware = config, hardware
        self._ranges = layer_ranges(config)
        self._stages = stage_weights(config)

    def step(self, batch_size: int) -> StepTime:
        """A step of `batch_size` sequences over all ranks."""
        schedule = self._config.schedule
        sequences, count = self._micro_batches(batch_size)
        parts = self._parts(sequences)
        busiest = self.stage(batch_size)
        return StepTime(
            compute=count * (busiest.forward_compute + busiest.backward_compute),
            exchange=count * (busiest.forward_exchange + busiest.backward_exchange),
            bubble=_bubble(self._config, max(parts, key=lambda p: p.forward + p.backward)),
            reduction=self._reduction(),
            optimizer=self._optimizer(),
            micro_batches=count,
            tokens=batch_size * schedule.sequence_length,
        )

    def stage(self, batch_size: int) -> PartTime:
        """One micro batch of such a step on the busiest stage, all of its parts."""
        sequences, _ = self._micro_batches(batch_size)
        parts = self._parts(sequences)
        stages = range(self._config.parallelism.pipeline_parallel_size)
        of_stages = [_sum(parts, self._config, stage) for stage in stages]
        return max(of_stages, key=lambda each: each.forward + each.backward)

    def _micro_batches(self, batch_size: int) -> tuple[int, int]:
        """Sequences of a micro batch, and how many of these a rank's share of a step makes."""
        layout = self._config.parallelism
        share = max(1, batch_size // layout.data_parallel_size)
        fewest = layout.fewest_micro_batches
        sequences = self._config.schedule.micro_batch_size_of(share, at_least=fewest)
        return sequences, share // sequences

    @lru_cache(maxsize=64)  # noqa: B019 - a clock lives as long as one plan
    def _parts(self, sequences: int) -> list[PartTime]:
        tokens = sequences * self._config.schedule.sequence_length
        return part_times(self._config, self._hardware, self._ranges, tokens=tokens)

    def run(self) -> RunTime:
        """All steps of the run."""
        schedule, layout = self._config.schedule, self._config.parallelism
        by_size: dict[int, int] = {}
        for stretch in schedule.stretches:
            by_size[stretch.batch_size] = by_size.get(stretch.batch_size, 0) + stretch.steps
        seconds = sum(steps * self.step(size).total for size, steps in by_size.items())
        flops = training_flops_per_token(
            self._config.model, sequence_length=schedule.sequence_length
        )
        peak = self._hardware.bf16_flops * layout.world_size * seconds
        return RunTime(
            step=self.step(schedule.global_batch_size),
            seconds=seconds,
            world_size=layout.world_size,
            tokens=schedule.total_tokens,
            utilisation=flops * schedule.total_tokens / peak,
        )

    def _reduction(self) -> float:
        layout = self._config.parallelism
        weight_bytes = bytes_per_weight(self._config.precision.recipe)
        return max(
            reduction(
                self._config,
                self._hardware,
                dense=stage.dense,
                experts=stage.experts // layout.expert_parallel_size,
                weight_bytes=weight_bytes,
            ).seconds(self._hardware)
            for stage in self._stages
        )

    def _optimizer(self) -> float:
        """AdamW reads and writes masters and moments, reads the gradient, writes the weights."""
        layout = self._config.parallelism
        moments = 2 * BYTES_PER_MOMENT[self._config.optimizer.moment_dtype]
        touched = 2 * (MASTER_BYTES + moments) + 2 * GRADIENT_BYTES
        touched += bytes_per_weight(self._config.precision.recipe)
        shares = [
            stage.dense / layout.data_parallel_size
            + stage.experts / layout.expert_parallel_size / layout.expert_data_parallel_size
            for stage in self._stages
        ]
        return max(shares) * touched / self._hardware.rate("memory_bytes_per_s")


def _sum(parts: list[PartTime], config: RunConfig, stage: int) -> PartTime:
    layout = config.parallelism
    schedule, stages = layout.pipeline_schedule, layout.pipeline_parallel_size
    held = [global_part(schedule, stages, stage, n) for n in range(parts_per_stage(schedule))]
    return sum((parts[number] for number in held), PartTime())


def _bubble(config: RunConfig, part: PartTime) -> float:
    """Idle seconds of a rank (docs/pipeline.md), every part taking as long as the longest."""
    layout = config.parallelism
    others = layout.pipeline_parallel_size - 1
    if others == 0:
        return 0.0
    if layout.pipeline_schedule == "1f1b":
        return others * (part.forward + part.backward)
    return max(0.0, 2 * others * part.backward - part.forward)
