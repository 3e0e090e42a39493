"""What ZeRO and the optimizer hold: for good, while gradients come, and while weights change.

FP32 runs go through DeepSpeed's ZeRO optimizer, the others through its BF16 one, which sums
gradients in FP32 as they come (engine/zero.py).
"""

from dataclasses import dataclass

from dsv3.config.root import RunConfig
from dsv3.plan.memory import BYTES_PER_MASTER, BYTES_PER_MOMENT, StageWeights, bytes_per_weight
from dsv3.plan.memory_ops import FP32, GRADIENTS_BF16, GRADIENTS_FP32, GradientRule
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
    gradients: int  # there all the time: sums over micro batches
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
    common = {
        "weights": held * bytes_per_weight(config.precision.recipe),
        "masters": shared * BYTES_PER_MASTER,
        "moments": shared * 2 * BYTES_PER_MOMENT[config.optimizer.moment_dtype],
        "average": ema,
    }
    several = layout.world_size > 1
    if config.precision.recipe != "fp32":
        owned = shared if layout.zero_stage >= 2 else held
        # Groups of more than so many elements are reduced where they are, smaller ones together.
        together = 0 if stage.dense > REDUCED_ELEMENTS or not several else stage.dense * FP32
        return EngineMemory(
            **common, gradients=owned * FP32, bucket=0, update=together, rule=GRADIENTS_BF16
        )
    accumulates = layout.parts > 1 or config.gradient_accumulation_steps > 1
    bucket = BUCKET_ELEMENTS * FP32
    reduced = held * FP32
    flat = max(dense_share, expert_share) * FP32
    if several:
        in_bucket = min(held, BUCKET_ELEMENTS) * FP32
        update = bucket + shared * FP32 + max(in_bucket, flat) + (0 if accumulates else 0)
    else:
        update = (0 if accumulates else reduced) + flat
    rule = GRADIENTS_FP32 if not accumulates else GradientRule(FP32, 0, 0)
    if several and not accumulates:
        rule = GradientRule(FP32, 0, 0)  # they move into the bucket
    return EngineMemory(
        **common,
        gradients=reduced if accumulates else 0,
        bucket=bucket if layout.parts == 1 else 0,
        update=update,
        rule=rule,
    )
