"""A trace as plain data: what `dsv3 plan --trace --json` prints and its tables are made of."""

from typing import Any

from dsv3.config.root import RunConfig
from dsv3.parallel.schedule import Action
from dsv3.plan.imbalance import rows_of_rank
from dsv3.train.trace import StageTrace, Trace, trace
from dsv3.train.trace_program import micro_batch_shape

LARGEST = 8
"""Kinds of storages listed for each stage."""
STAND_INS = (
    "Transformer Engine's layers are stand-ins here: they allocate what its source says (2.20), and"
    " were never measured on a GPU. What cuDNN needs inside of its attention is left out."
)


def trace_record(config: RunConfig, *, max_violation: float) -> dict[str, Any]:
    """Trace a configuration with an even load of the experts and with `max_violation`."""
    one_rank = config.parallelism.expert_parallel_size == 1  # all rows are its own
    loads = [0.0] if one_rank else sorted({0.0, max_violation})
    traces = [trace(config, max_violation=load) for load in loads]
    sequences, length = micro_batch_shape(config)
    return {
        "model": config.model.name,
        "device": traces[0].device,
        "precision": config.precision.recipe,
        "stand_ins": STAND_INS if config.precision.backend == "te" else None,
        "recompute": config.recompute,
        "world_size": config.parallelism.world_size,
        "micro_batch_shape": [sequences, length],
        "micro_batches": config.gradient_accumulation_steps,
        "loads": [_load(config, each, sequences * length) for each in traces],
    }


def _load(config: RunConfig, found: Trace, tokens: int) -> dict[str, Any]:
    return {
        "max_violation": found.max_violation,
        "rows_of_a_rank": rows_of_rank(
            config.model, config.parallelism, tokens=tokens, max_violation=found.max_violation
        ),
        "fullest_stage": found.largest.place.stage,
        "peak_bytes": found.largest.peak_bytes,
        "stages": [_stage(stage) for stage in found.stages],
    }


def _stage(stage: StageTrace) -> dict[str, Any]:
    return {
        "stage": stage.place.stage,
        "rank": stage.place.rank,
        "layers": [[part.start, part.stop] for part in stage.layers],
        "parameters": stage.passes.parameters,
        "state_bytes": stage.state_bytes,
        "kept_bytes_per_micro_batch": list(stage.kept_bytes),
        "peak_bytes": stage.peak_bytes,
        "at_peak": {name: size for name, size in stage.moment.parts.items() if size > 0},
        "moment": _moment(stage.moment.action),
        "micro_batches_under_way": list(stage.in_flight),
        "largest": [
            {
                "operation": live.made.operation,
                "shape": list(live.made.shape),
                "dtype": str(live.made.dtype).removeprefix("torch."),
                "bytes": live.made.size,
                "count": live.number,
            }
            for live in stage.largest(LARGEST)
        ],
    }


def _moment(action: Action | str) -> str:
    if isinstance(action, str):
        return action
    return f"{action.kind} of part {action.part}, micro batch {action.micro_batch}"
