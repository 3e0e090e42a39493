"""The most memory a rank of each pipeline stage needs at any moment of a step, and what it is of.

A step is gone through pass by pass, in the order of its pipeline schedule: what the passes under
way keep, what the one that runs needs, beside the state. The formulas follow the code operation by
operation, so that they hold on a CPU to a few per cent; the CUDA context, NCCL's own buffers and
the allocator's fragmentation are in none of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from dsv3.config.root import RunConfig
from dsv3.parallel.schedule import actions, global_part, parts_per_stage
from dsv3.plan.imbalance import DEFAULT_MAX_VIOLATION
from dsv3.plan.memory import stage_weights
from dsv3.plan.memory_blocks import LayerMemory, block
from dsv3.plan.memory_ends import embedding, head, mtp_modules
from dsv3.plan.memory_engine import EngineMemory, engine_memory
from dsv3.plan.memory_fp8 import copies_bytes
from dsv3.plan.memory_ops import GradientRule
from dsv3.plan.memory_pass import Device, Pass, pass_of
from dsv3.plan.stages import layer_ranges


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
    base = engine.state
    base["fp8 copies"] = copies_bytes(config, [ranges[number] for number in numbers])
    if p.device == "cpu":
        base["average"] = engine.average
    found = [
        StageMemory(
            stage, base | {"update": engine.update}, _host(p, engine), (0,) * len(parts), "update"
        )
    ]
    for kind, part, in_flight in _moments(config, stage, len(parts)):
        held = _added(parts, in_flight)
        running = parts[part]
        own = running.kept_in_all
        most = running.forward if kind == "forward" else running.backward
        held["working"] = max(0, most - own)
        bucket = engine.bucket if kind == "backward" else 0
        found.append(
            StageMemory(stage, base | held | {"buckets": bucket}, _host(p, engine), in_flight, kind)
        )
    return max(found, key=lambda each: each.peak_bytes)


def _host(p: Pass, engine: EngineMemory) -> int:
    return engine.average if p.device == "cuda" else 0


def _added(parts: list["PartMemory"], in_flight: tuple[int, ...]) -> dict[str, int]:
    """What the micro batches under way keep, by part of the breakdown."""
    found: dict[str, int] = {}
    for part, count in zip(parts, in_flight, strict=True):
        for name, size in part.kept.items():
            found[name] = found.get(name, 0) + count * size
    return found


def _moments(
    config: RunConfig, stage: int, parts: int
) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """Kinds of moments of a step: what runs, of which part, micro batches under way with it."""
    layout = config.parallelism
    seen = set()
    under_way = [0] * parts
    micro_batches = min(config.gradient_accumulation_steps, 2 * layout.fewest_micro_batches + 2)
    order = _order(layout.pipeline_schedule, layout.pipeline_parallel_size, micro_batches, stage)
    for kind, part in order:
        under_way[part] += kind == "forward"
        moment = kind, part, tuple(under_way)
        if moment not in seen:
            seen.add(moment)
            yield moment
        under_way[part] -= kind == "backward"


@lru_cache(maxsize=4096)
def _order(
    schedule: str, stages: int, micro_batches: int, stage: int
) -> tuple[tuple[str, int], ...]:
    """Kinds and parts of a rank's actions; beyond the steady state they only repeat."""
    found = actions(schedule, stages, micro_batches, stage)  # type: ignore[arg-type]
    return tuple((action.kind, action.part) for action in found)


class PartMemory:
    """One part of the model on its rank, for one micro batch."""

    def __init__(
        self, config: RunConfig, p: Pass, ranges: list[range], number: int, rule: GradientRule
    ) -> None:
        self.layers = list(_layers(config, p, ranges, number, rule))
        self.kept: dict[str, int] = {}
        for each in self.layers:
            for name, size in each.kept.items():
                self.kept[name] = self.kept.get(name, 0) + size
        if number + 1 < len(ranges):  # its output stays until the gradient of it comes
            self.kept["activations"] = self.kept.get("activations", 0) + p.of(p.model.hidden_size)
        self._rule = rule

    @property
    def kept_in_all(self) -> int:
        """Bytes between the forward and the backward pass."""
        return sum(self.kept.values())

    @property
    def forward(self) -> int:
        """The most while it runs forward."""
        before, most = 0, 0
        for each in self.layers:
            most = max(most, before + each.forward)
            before += each.kept_in_all
        return most

    @property
    def backward(self) -> int:
        """The most while it runs backward, with the gradients of weights that stay."""
        before, made, most = self.kept_in_all, 0, 0
        for each in reversed(self.layers):
            before -= each.kept_in_all
            most = max(most, before + each.backward + made)
            made += self._rule.left([each.weights])
        return most


def _layers(
    config: RunConfig, p: Pass, ranges: list[range], number: int, rule: GradientRule
) -> Iterator[LayerMemory]:
    part, dense = ranges[number], config.model.first_k_dense_replace
    if number == 0:
        yield embedding(p, rule)
    for layer in part:
        yield block(p, rule, is_moe=layer >= dense)
    if number == len(ranges) - 1:
        yield head(p, rule)
        yield from mtp_modules(p, rule, config.mtp.num_nextn_predict_layers)
