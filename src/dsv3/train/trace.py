"""What the ranks of a configuration allocate in a step: their program run on tensors without data.

One rank of every pipeline stage stands for all of the stage, its experts as loaded as the busiest.
Its passes are traced once and a whole step is put together from them, in the order of the schedule:
a pass of a later micro batch allocates what the same pass of an earlier one did. Stages with the
same kinds of layers share their passes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from dsv3.config.root import RunConfig
from dsv3.parallel.mesh import Place, place_of
from dsv3.parallel.schedule import Action, Kind, actions
from dsv3.plan.imbalance import DEFAULT_MAX_VIOLATION
from dsv3.plan.memory_pass import Device
from dsv3.plan.peak import device_of
from dsv3.plan.te_capacity import check_widths
from dsv3.train.stages import layers_held, parts_held
from dsv3.train.trace_memory import Made
from dsv3.train.trace_passes import Passes, trace_passes
from dsv3.train.trace_step import Moment, fullest_moment


class Live(NamedTuple):
    """Storages of one kind that are alive at the peak."""

    made: Made
    number: int

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return self.made.size * self.number


@dataclass(frozen=True)
class StageTrace:
    """A rank of one stage: its bytes at the fullest moment of a step, and what runs then."""

    place: Place
    layers: tuple[range, ...]  # of each part
    passes: Passes
    moment: Moment

    @property
    def peak_bytes(self) -> int:
        """The most at any moment."""
        return self.moment.size

    @property
    def state_bytes(self) -> int:
        """Between steps."""
        return sum(self.passes.state.values())

    @property
    def kept_bytes(self) -> tuple[int, ...]:
        """What a micro batch keeps for its backward pass, by part."""
        parts = range(len(self.layers))
        return tuple(self.passes.of["forward", part][-1].memory.end for part in parts)

    @property
    def in_flight(self) -> tuple[int, ...]:
        """Micro batches under way at the peak, by part, the one that runs too."""
        under_way = [part for part, _ in self.moment.under_way]
        action = self.moment.action
        if isinstance(action, Action) and action.kind == "forward":
            under_way.append(action.part)
        return tuple(under_way.count(part) for part in range(len(self.layers)))

    def largest(self, count: int) -> list[Live]:
        """What is alive at the peak besides the state, the largest first; like by like."""
        found: dict[Made, int] = {}
        for part, micro_batch in self.moment.under_way:
            kept = self.passes.of_action(Action("forward", part, micro_batch)).memory.left
            for made in kept:
                found[made] = found.get(made, 0) + 1
        for made in self._running():
            found[made] = found.get(made, 0) + 1
        live = sorted((Live(*item) for item in found.items()), key=lambda each: -each.size)
        return live[:count]

    def _running(self) -> list[Made]:
        match self.moment.action:
            case Action() as action:
                return self.passes.of_action(action).memory.at_peak
            case "reduce":
                return self.passes.reduce.at_peak
        return self.passes.update.at_peak


@dataclass(frozen=True)
class Trace:
    """Every stage of a layout under one load of the experts."""

    stages: tuple[StageTrace, ...]
    max_violation: float
    device: Device

    @property
    def largest(self) -> StageTrace:
        """The stage with the highest peak; of equal ones the first."""
        return max(self.stages, key=lambda stage: stage.peak_bytes)


def trace(
    config: RunConfig,
    *,
    max_violation: float = DEFAULT_MAX_VIOLATION,
    device: Device | None = None,
) -> Trace:
    """Trace a rank of every stage of a step of full size.

    `max_violation` is MaxVio of its experts, 0 for an even load; `device` that of the ranks, by
    default the configuration's. Raises CapacityError for widths that Transformer Engine does not
    take, if the precision is its.
    """
    check_widths(config)
    device = device_of(config) if device is None else device
    found: dict[Any, Passes] = {}
    stages = []
    for place in _places(config):
        program = _program(config, place)
        if program not in found:
            found[program] = trace_passes(config, place, device=device, max_violation=max_violation)
        stages.append(step_of(config, place, found[program]))
    return Trace(tuple(stages), max_violation, device)


def step_of(config: RunConfig, place: Place, passes: Passes) -> StageTrace:
    """A step of full size of the rank at `place` from the passes of its program."""
    micro_batches = config.gradient_accumulation_steps
    moment = fullest_moment(passes, _order(config, place, micro_batches), micro_batches)
    return StageTrace(place, tuple(layers_held(config, place.stage)), passes, moment)


def _places(config: RunConfig) -> Iterator[Place]:
    """The first rank of each stage."""
    layout = config.parallelism
    for rank in range(0, layout.world_size, layout.data_parallel_size):
        yield place_of(layout, rank)


def _order(config: RunConfig, place: Place, micro_batches: int) -> list[Action]:
    layout = config.parallelism
    if layout.parts == 1:
        kinds: tuple[Kind, ...] = ("forward", "backward")
        return [Action(kind, 0, index) for index in range(micro_batches) for kind in kinds]
    schedule, stages = layout.pipeline_schedule, layout.pipeline_parallel_size
    return actions(schedule, stages, micro_batches, place.stage)


def _program(config: RunConfig, place: Place) -> tuple[Any, ...]:
    """What tells programs apart: the kinds of layers of each part, and where its ends lead."""
    numbers, last = parts_held(config, place.stage), config.parallelism.parts - 1
    dense = config.model.first_k_dense_replace
    return tuple(
        (
            sum(layer < dense for layer in layers),
            sum(layer >= dense for layer in layers),
            number == 0,
            number == last,
            number - 1 in numbers,
            number + 1 in numbers,
        )
        for number, layers in zip(numbers, layers_held(config, place.stage), strict=True)
    )
