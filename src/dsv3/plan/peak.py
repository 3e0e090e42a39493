"""The most memory a rank of each pipeline stage needs at any moment of a step, and what it is of.

A step is gone through pass by pass, in the order of its pipeline schedule: what the passes under
way keep, what the one that runs needs, beside the state. The formulas follow the code operation by
operation, so that they hold on a CPU to a few per cent; the CUDA context, NCCL's own buffers and
the allocator's fragmentation are in none of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from dsv3.config.parallelism import PipelineSchedule
from dsv3.config.root import RunConfig
from dsv3.parallel.schedule import actions, global_part, parts_per_stage
from dsv3.plan.fp8_copies import CUBLAS_BYTES, CUBLAS_ROOMS
from dsv3.plan.imbalance import DEFAULT_MAX_VIOLATION
from dsv3.plan.memory import stage_weights
from dsv3.plan.memory_blocks import LayerMemory, block
from dsv3.plan.memory_ends import embedding, head, mtp_modules
from dsv3.plan.memory_engine import EngineMemory, engine_memory
from dsv3.plan.memory_ops import GRADIENTS_FP32, GradientRule
from dsv3.plan.memory_pass import Device, Pass, pass_of
from dsv3.plan.stages import layer_ranges

UPDATE = "update"


@dataclass(frozen=True)
class StageMemory:
    """Bytes of one rank of a stage at its fullest moment, by what they are of."""

    stage: int
    parts: dict[str, int]
    host_bytes: int  # beside a GPU: the average of the parameters
    in_flight: tuple[int, ...]  # micro batches under way then, by part
    moment: str  # what runs then: `forward`, `backward` or `update`

    @property
    def peak_bytes(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class PeakMemory:
    """Every stage of a layout; all ranks of a stage are alike, with the busiest one's load."""

    stages: tuple[StageMemory, ...]
    max_violation: float
    device: Device

    @property
    def largest(self) -> StageMemory:
        """The stage that decides whether the run fits; of equal ones the first."""
        return max(self.stages, key=lambda stage: stage.peak_bytes)

    @property
    def bytes_per_rank(self) -> int:
        """Peak of a rank of the largest stage."""
        return self.largest.peak_bytes

    def bytes_of_all_ranks(self, data_ranks: int) -> int:
        """Peaks of all ranks together, `data_ranks` in each stage, as if they fell together."""
        return data_ranks * sum(stage.peak_bytes for stage in self.stages)


def device_of(config: RunConfig) -> Device:
    """The device to plan for: a GPU unless the configuration says CPU."""
    return "cpu" if config.launcher.device == "cpu" else "cuda"


def peak_memory(
    config: RunConfig,
    *,
    max_violation: float = DEFAULT_MAX_VIOLATION,
    device: Device | None = None,
) -> PeakMemory:
    """Predict the peak of every stage.

    `max_violation` is MaxVio of the busiest rank's experts, 0 for an even load; `device` is that of
    the ranks, by default the configuration's. On a CPU all of a rank's memory is the host's.
    """
    device = device_of(config) if device is None else device
    p = pass_of(config, device=device, max_violation=max_violation)
    ranges = layer_ranges(config)
    stages = tuple(
        _stage(config, p, ranges, stage, engine_memory(config, weights, device=device))
        for stage, weights in enumerate(stage_weights(config))
    )
    return PeakMemory(stages, max_violation, device)


def _stage(
    config: RunConfig, p: Pass, ranges: list[range], stage: int, engine: EngineMemory
) -> StageMemory:
    layout = config.parallelism
    schedule, stages = layout.pipeline_schedule, layout.pipeline_parallel_size
    numbers = [global_part(schedule, stages, stage, n) for n in range(parts_per_stage(schedule))]
    parts = [PartMemory(config, p, ranges, number, engine.rule) for number in numbers]

    def running(moment: Moment) -> tuple[int, dict[str, int]]:
        """What a moment adds to the state: in all, and what is gone when it is over."""
        part, makes = parts[moment.part], engine.late and moment.first
        most = part.forward
        if moment.kind == "backward":
            most = part.making if makes else part.backward
        now = {
            "working": max(0, most - part.kept_in_all),
            "buckets": engine.bucket if moment.kind == "backward" else 0,
        }
        if makes:
            now["gradients"] = -engine.gradients
        held = sum(n * each.kept_in_all for n, each in zip(moment.in_flight, parts, strict=True))
        return held + sum(now.values()), now

    moments = _moments(schedule, stages, _enough_micro_batches(config), stage)
    fullest = max(moments, key=lambda moment: running(moment)[0])
    state = engine.state
    if p.engine is not None:
        state["room for products"] = CUBLAS_ROOMS * CUBLAS_BYTES
    if p.device == "cpu":
        state["average"] = engine.average
    host = engine.average if p.device == "cuda" else 0
    more, now = running(fullest)
    if engine.update > more:
        return StageMemory(
            stage, state | {"update": engine.update}, host, (0,) * len(parts), UPDATE
        )
    now["gradients"] = state["gradients"] + now.get("gradients", 0)
    held = _added(parts, fullest.in_flight)
    return StageMemory(stage, state | held | now, host, fullest.in_flight, fullest.kind)


def _added(parts: list["PartMemory"], in_flight: tuple[int, ...]) -> dict[str, int]:
    """What the micro batches under way keep, by part of the breakdown."""
    found: dict[str, int] = {}
    for part, count in zip(parts, in_flight, strict=True):
        for name, size in part.kept.items():
            found[name] = found.get(name, 0) + count * size
    return found


class Moment(NamedTuple):
    """What runs, of which part, and the micro batches under way with it, by part.

    `first`: no backward pass of the step is done.
    """

    kind: str
    part: int
    in_flight: tuple[int, ...]
    first: bool


def _enough_micro_batches(config: RunConfig) -> int:
    """Beyond the steady state the moments of a step only repeat."""
    fewest = config.parallelism.fewest_micro_batches
    return min(config.gradient_accumulation_steps, 2 * fewest + 2)


@lru_cache(maxsize=4096)
def _moments(
    schedule: PipelineSchedule, stages: int, micro_batches: int, stage: int
) -> tuple[Moment, ...]:
    """All different moments of a rank's step."""
    found: dict[Moment, None] = {}
    under_way, first = [0] * parts_per_stage(schedule), True
    for action in actions(schedule, stages, micro_batches, stage):
        under_way[action.part] += action.kind == "forward"
        found[Moment(action.kind, action.part, tuple(under_way), first)] = None
        under_way[action.part] -= action.kind == "backward"
        first = first and action.kind != "backward"
    return tuple(found)


class PartMemory:
    """One part of the model on its rank, for one micro batch."""

    def __init__(
        self, config: RunConfig, p: Pass, ranges: list[range], number: int, rule: GradientRule
    ) -> None:
        # Runs of layers that are alike: a model may have as many layers as somebody types.
        self.runs = [run for run in _runs(config, p, ranges, number, rule) if run.layers > 0]
        self.kept: dict[str, int] = {}
        for each, layers in self.runs:
            for name, size in each.kept.items():
                self.kept[name] = self.kept.get(name, 0) + layers * size
        if number + 1 < len(ranges):  # its output stays until the gradient of it comes
            self.kept["activations"] = self.kept.get("activations", 0) + p.of(p.model.hidden_size)
        self._rule = rule

    @cached_property
    def kept_in_all(self) -> int:
        """Bytes between the forward and the backward pass."""
        return sum(self.kept.values())

    @cached_property
    def forward(self) -> int:
        """The most while it runs forward."""
        before, most = 0, 0
        for each, layers in self.runs:
            before += layers * each.kept_in_all
            most = max(most, before - each.kept_in_all + each.forward)  # in the last of them
        return most

    @cached_property
    def backward(self) -> int:
        """The most while it runs backward, with the gradients of weights that stay."""
        return self._most_backward(self._rule)

    @cached_property
    def making(self) -> int:
        """The most while it runs backward and FP32 gradients begin to be."""
        return self._most_backward(GRADIENTS_FP32)

    def _most_backward(self, rule: GradientRule) -> int:
        before, made, most = self.kept_in_all, 0, 0
        for each, layers in reversed(self.runs):
            left = rule.left([each.weights])
            others = layers - 1  # what they lose and leave is the same for each: an end is the most
            first = before - each.kept_in_all + made
            last = first + others * (left - each.kept_in_all)
            most = max(most, first + each.backward, last + each.backward)
            before -= layers * each.kept_in_all
            made += layers * left
        return most


class Run(NamedTuple):
    """Layers in a row that are alike, and how many."""

    layer: LayerMemory
    layers: int


def _runs(
    config: RunConfig, p: Pass, ranges: list[range], number: int, rule: GradientRule
) -> Iterator[Run]:
    part, dense = ranges[number], config.model.first_k_dense_replace
    if number == 0:
        yield Run(embedding(p, rule), 1)
    first_moe = min(max(part.start, dense), part.stop)
    yield Run(block(p, rule, is_moe=False), first_moe - part.start)
    yield Run(block(p, rule, is_moe=True), part.stop - first_moe)
    if number == len(ranges) - 1:
        yield Run(head(p, rule), 1)
        for module in mtp_modules(p, rule, config.mtp.num_nextn_predict_layers):
            yield Run(module, 1)
