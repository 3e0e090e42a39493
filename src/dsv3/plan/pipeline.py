"""A run's pipeline beside the methods of the report's table 2: bubble, parameters, activations."""

from typing import Any

from dsv3.config.root import RunConfig
from dsv3.plan.chunk_time import PartTime
from dsv3.plan.methods import (
    METHODS,
    ChunkTimes,
    Method,
    bubble_s,
    copies_of_parameters,
    micro_batches_kept,
)
from dsv3.plan.step_time import Clock
from dsv3.plan.timeline import Timeline, run


def pipeline_record(config: RunConfig, clock: Clock) -> list[dict[str, Any]]:
    """What each method would idle with the chunk times of this run; none without a pipeline.

    Nothing of it is a choice of the configuration: this program trains with two schedules that
    split no backward pass.
    """
    ranks = config.parallelism.pipeline_parallel_size
    if ranks == 1:
        return []
    stage = clock.stage(config.schedule.global_batch_size)
    return [
        {
            "method": method,
            "bubble_seconds": bubble_s(method, ranks, chunk_times(stage, method)),
            "parameters": copies_of_parameters(method),
            "micro_batches_kept": micro_batches_kept(method, ranks),
        }
        for method in METHODS
        if method != "dualpipe" or ranks % 2 == 0
    ]


def chunk_times(stage: PartTime, method: Method) -> ChunkTimes:
    """Of a chunk of the method, from those of a stage; a pair overlaps computing and travelling."""
    share = 0.5 if method == "dualpipev" else 1.0
    computing = stage.forward_compute + stage.backward_compute
    travelling = stage.forward_exchange + stage.backward_exchange
    return ChunkTimes(
        share * stage.forward,
        share * stage.backward,
        share * stage.weights,
        share * max(computing, travelling),
    )


def timeline_of(config: RunConfig, clock: Clock, *, method: Method, micro_batches: int) -> Timeline:
    """A simulated step of this run's pipeline under a method, with so many micro batches."""
    stage = clock.stage(config.schedule.global_batch_size)
    ranks = config.parallelism.pipeline_parallel_size
    return run(method, ranks, micro_batches, chunk_times(stage, method))
