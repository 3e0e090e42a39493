"""A step of a run's pipeline: how long ranks idle under each method, and when they do what."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsv3.commands import plan_lanes
from dsv3.config.root import RunConfig
from dsv3.errors import ConfigError, Problem
from dsv3.lanes import Box, Lane
from dsv3.parallel.schedule import parts_per_stage, simulate
from dsv3.plan.quantities import duration
from dsv3.plan.setting import Setting
from dsv3.plan.step_time import Clock

MOST_LANES = 16
AXIS = "milliseconds since the step began; numbers are micro batches, grey is idle"
METHODS = {"1f1b": "1F1B", "zb1p": "ZB1P", "dualpipe": "DualPipe", "dualpipev": "DualPipeV"}
KINDS = {"F": "forward", "f": "forward, second part", "B": "backward", "b": "backward, second part"}


def pipeline_lines(
    config: RunConfig, setting: Setting, methods: list[dict[str, Any]]
) -> Iterator[str]:
    """Bubbles of the methods, then a step as text; nothing without a pipeline."""
    if not methods:
        return
    layout = config.parallelism
    bubbles = ", ".join(
        f"{METHODS[each['method']]} {duration(each['bubble_seconds'])}" for each in methods
    )
    yield f"bubble of a step under the report's methods (table 2): {bubbles}"
    micro_batches = _few(config)
    yield (
        f"{layout.pipeline_schedule}, a step of {micro_batches} micro batches, a lane for each"
        " stage: F f forward, B b backward (small: the second part), . idle"
    )
    yield from plan_lanes.text(pipeline_lanes(config, setting), plan_lanes.terminal_columns())


def draw_pipeline(path: Path, config: RunConfig, setting: Setting) -> None:
    """The same step as an SVG.

    Raises ConfigError if there is no pipeline, CapacityError if the file cannot be written.
    """
    if config.parallelism.pipeline_parallel_size == 1:
        rule = "has no pipeline to draw (parallelism.pipeline_parallel_size=1)"
        remedy = "plan a sweep, or a layout with several stages"
        raise ConfigError(Problem(f"--svg {path}: model={config.model.name}", rule, remedy))
    lanes, kinds = pipeline_lanes(config, setting), kinds_of(config)
    plan_lanes.draw(path, pipeline_title(config, setting), lanes, axis=AXIS, kinds=kinds)


def pipeline_title(config: RunConfig, setting: Setting) -> str:
    """What a drawing of the step shows."""
    layout = config.parallelism
    return (
        f"{config.model.name}: {layout.pipeline_schedule}, {layout.pipeline_parallel_size} stages,"
        f" {_few(config)} micro batches, as planned for {setting.hardware.gpu}"
    )


def kinds_of(config: RunConfig) -> dict[str, str]:
    """What a rank does in a step: the kinds of boxes, with their names."""
    return {kind: name for kind, name in KINDS.items() if parts_of(config) > 1 or kind.isupper()}


def parts_of(config: RunConfig) -> int:
    """Parts of the model that a stage holds."""
    return parts_per_stage(config.parallelism.pipeline_schedule)


def _few(config: RunConfig) -> int:
    """Enough micro batches to see the steady state, and not so many that nothing else is seen."""
    fewest = config.parallelism.fewest_micro_batches
    return min(config.gradient_accumulation_steps, fewest + fewest // 2)


def pipeline_lanes(config: RunConfig, setting: Setting) -> list[Lane]:
    """A lane for each stage, in milliseconds; of many stages every second, third, ... one."""
    layout, parts = config.parallelism, parts_of(config)
    stage = Clock(config, setting.hardware).stage(config.schedule.global_batch_size)
    simulated = simulate(
        layout.pipeline_schedule,
        layout.pipeline_parallel_size,
        _few(config),
        1e3 * stage.forward / parts,
        1e3 * stage.backward / parts,
    )
    stages = range(layout.pipeline_parallel_size)
    step = -(-len(stages) // MOST_LANES)
    return [
        Lane(
            f"stage {number}",
            [
                Box(
                    _kind(timed.action.kind, timed.action.part),
                    timed.start_s,
                    timed.end_s,
                    str(timed.action.micro_batch),
                )
                for timed in simulated.ranks[number]
            ],
        )
        for number in stages[::step]
    ]


def _kind(kind: str, part: int) -> str:
    letter = kind[0].upper()
    return letter if part == 0 else letter.lower()
