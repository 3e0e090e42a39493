"""What ZeRO and the optimizer hold: for good, while gradients come, and while weights change.

FP32 runs go through DeepSpeed's ZeRO optimizer, the others through its BF16 one, which sums
gradients in FP32 as they come (engine/zero.py).
"""

from dataclasses import dataclass
from typing import NamedTuple

from dsv3.config.root import RunConfig
from dsv3.plan.memory import BYTES_PER_MASTER, BYTES_PER_MOMENT, StageWeights, bytes_per_weight
from dsv3.plan.memory_ops import (
    BF16,
    FP32,
    GRADIENTS_BF16,
    GRADIENTS_FP32,
    GRADIENTS_MOVED,
    GradientRule,
)
from dsv3.plan.memory_pass import Device

BUCKET_ELEMENTS = 50_000_000
"""engine/settings.py: gradients that the ZeRO optimizer reduces at once; the room is made whole."""
REDUCED_ELEMENTS = 500_000_000
"""engine/zero.py: gradients that DeepSpeed copies together to reduce them in BF16 runs."""


@dataclass(frozen=True)
class EngineMemory:
    """Bytes of the training state of one rank."""

    weights: int
    masters: int
    moments: int
    gradients: int  # sums over micro batches; there all the time, but if they come `late`
    late: bool  # made by the first backward pass of a step, and gone with its update
    average: int  # of the parameters, in host memory
    bucket: int  # while the gradients of the last micro batch come
    update: int  # besides the state, while gradients are reduced and weights updated
    rule: GradientRule

    @property
    def state(self) -> dict[str, int]:
        """What is there all the time, by part."""
        return {
            "weights": self.weights,
            "masters": self.masters,
            "moments": self.moments,
            "gradients": self.gradients,
        }


def engine_memory(config: RunConfig, stage: StageWeights, *, device: Device) -> EngineMemory:
    """Of a rank that holds its share of a stage's weights."""
    layout = config.parallelism
    experts = -(-stage.experts // layout.expert_parallel_size)
    held = stage.dense + experts
    dense_share = -(-stage.dense // layout.data_parallel_size)
    expert_share = -(-experts // layout.expert_data_parallel_size)
    shared = dense_share + expert_share
    ema = 0 if config.ema.decay is None else FP32 * shared * (2 if device == "cuda" else 1)
    if config.precision.recipe == "fp32":
        coming = _fp32_gradients(config, held, dense_share, expert_share)
    else:
        coming = _summed_gradients(config, stage.dense, held, shared)
    return EngineMemory(
        weights=held * bytes_per_weight(config.precision.recipe),
        masters=shared * BYTES_PER_MASTER,
        moments=shared * 2 * BYTES_PER_MOMENT[config.optimizer.moment_dtype],
        average=ema,
        **coming._asdict(),
    )


class Gradients(NamedTuple):
    """The fields of `EngineMemory` that are about gradients."""

    gradients: int
    bucket: int
    update: int
    rule: GradientRule
    late: bool = False


def _summed_gradients(config: RunConfig, dense: int, held: int, shared: int) -> Gradients:
    """FP32 sums are there all the time; to be reduced, small groups of them are copied together.

    ZeRO-2 has the other optimizer: a bucket in BF16 in every backward pass, and sums of what a rank
    owns from the first reduction on.
    """
    layout = config.parallelism
    if layout.zero_stage >= 2:
        accumulates = config.gradient_accumulation_steps > 1
        sums = shared * FP32 if accumulates else 0
        return Gradients(sums, BUCKET_ELEMENTS * BF16, shared * FP32 - sums, GRADIENTS_BF16)
    together = layout.world_size > 1 and dense <= REDUCED_ELEMENTS
    return Gradients(held * FP32, 0, dense * FP32 if together else 0, GRADIENTS_BF16)


def _fp32_gradients(config: RunConfig, held: int, dense_share: int, expert_share: int) -> Gradients:
    """Gradients stay with their weights, or move into a bucket when the last micro batch comes.

    With a pipeline the bucket is made a second time before they are reduced; once the first bucket
    is full, room is made for all that this rank owns, and what filled it is gone from elsewhere.
    The update copies the gradients of one group after the other.
    """
    layout = config.parallelism
    bucket, flat = BUCKET_ELEMENTS * FP32, max(dense_share, expert_share) * FP32
    owned = (dense_share + expert_share) * FP32
    accumulates = layout.parts > 1 or config.gradient_accumulation_steps > 1
    alone = layout.world_size == 1
    if layout.parts > 1:
        update = 2 * bucket + max(0, owned - FP32 * _first_bucket(config))
    elif alone:
        update = flat + (0 if accumulates else owned)
    else:
        update = owned + max(bucket, flat)
    rule = GRADIENTS_FP32 if alone and not accumulates else GRADIENTS_MOVED
    sums = held * FP32 if accumulates else 0
    return Gradients(sums, bucket, update, rule, late=accumulates)


def _first_bucket(config: RunConfig) -> int:
    """Elements that fill a bucket: whole tensors, so that half of the largest does not fit."""
    model, layout = config.model, config.parallelism
    local = model.n_routed_experts // layout.expert_parallel_size
    largest = local * 2 * model.moe_intermediate_size * model.hidden_size
    return BUCKET_ELEMENTS - min(largest, BUCKET_ELEMENTS) // 2
