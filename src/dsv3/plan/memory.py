"""Bytes of weights, gradients and optimizer state on a rank, from the configuration alone.

Without activations, communication buffers, the allocator's fragmentation and the CUDA context: a
rank needs more than this, so that a machine too small for it is too small for the run.
"""

from dataclasses import dataclass

from dsv3.config.parallelism import ParallelismConfig
from dsv3.config.root import RunConfig
from dsv3.parallel.schedule import global_part, parts_per_stage
from dsv3.plan.parameters import ParameterCounts, count_mtp, count_parameters
from dsv3.plan.stages import layer_ranges

# Gradients are accumulated in FP32 in every recipe.
BYTES_PER_GRADIENT = 4
# DeepSpeed keeps a master beside FP32 weights too.
BYTES_PER_MASTER = 4
BYTES_PER_MOMENT = {"fp32": 4, "bf16": 2}  # of which AdamW has two


def bytes_per_weight(recipe: str) -> int:
    """Bytes of a weight that products read: FP8 ones quantise weights that are kept in BF16."""
    return 4 if recipe == "fp32" else 2


@dataclass(frozen=True)
class StageWeights:
    """Weights of one pipeline stage before they are spread over its ranks."""

    dense: int
    experts: int


@dataclass(frozen=True)
class StateBytes:
    """Bytes that live as long as the training does, without activations."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All three together."""
        return self.weights + self.gradients + self.optimizer


def state_bytes_per_rank(config: RunConfig) -> StateBytes:
    """State of a rank of the largest pipeline stage, without activations."""
    return max(_bytes_per_stage(config), key=lambda state: state.total)


def state_bytes_of_all_ranks(config: RunConfig) -> int:
    """State of all ranks together, replicas included, without activations."""
    ranks = config.parallelism.data_parallel_size
    return ranks * sum(state.total for state in _bytes_per_stage(config))


def stage_weights(config: RunConfig) -> list[StageWeights]:
    """Weights of each stage, of all the parts it holds.

    The embedding is with the first part; final norm, head and MTP are with the last.
    """
    counts, layout = count_parameters(config.model), config.parallelism
    parts = layer_ranges(config)
    dense = [_dense(part, config, counts) for part in parts]
    experts = [_moe_layers(part, config) * _experts(counts) for part in parts]
    depth = config.mtp.num_nextn_predict_layers
    mtp_experts = depth * _experts(counts)
    dense[0] += counts.embedding
    dense[-1] += counts.final_norm + counts.head
    dense[-1] += count_mtp(config.model, depth=depth).total - mtp_experts
    experts[-1] += mtp_experts
    schedule, stages = layout.pipeline_schedule, layout.pipeline_parallel_size
    held = [
        [global_part(schedule, stages, stage, part) for part in range(parts_per_stage(schedule))]
        for stage in range(stages)
    ]
    return [
        StageWeights(sum(dense[part] for part in each), sum(experts[part] for part in each))
        for each in held
    ]


def _dense(part: range, config: RunConfig, counts: ParameterCounts) -> int:
    """Weights of a part's blocks that every data rank holds."""
    moe = _moe_layers(part, config)
    ffn = (len(part) - moe) * counts.dense_ffn + moe * _moe_dense(counts)
    return len(part) * counts.around_ffn + ffn


def _moe_layers(part: range, config: RunConfig) -> int:
    return max(0, part.stop - max(part.start, config.model.first_k_dense_replace))


def _bytes_per_stage(config: RunConfig) -> list[StateBytes]:
    return [_rank_bytes(stage, config) for stage in stage_weights(config)]


def _rank_bytes(stage: StageWeights, config: RunConfig) -> StateBytes:
    """ZeRO shards dense state over all data ranks, that of experts over their replicas only."""
    layout = config.parallelism
    experts = _shard(stage.experts, layout.expert_parallel_size)
    held = stage.dense + experts
    sharded = _shard(stage.dense, layout.data_parallel_size)
    sharded += _shard(experts, layout.expert_data_parallel_size)
    state_bytes = BYTES_PER_MASTER + 2 * BYTES_PER_MOMENT[config.optimizer.moment_dtype]
    return StateBytes(
        weights=held * bytes_per_weight(config.precision.recipe),
        gradients=_gradients(layout, held, sharded) * BYTES_PER_GRADIENT,
        optimizer=sharded * state_bytes,
    )


def _gradients(layout: ParallelismConfig, held: int, sharded: int) -> int:
    return sharded if layout.zero_stage >= 2 else held


def _moe_dense(counts: ParameterCounts) -> int:
    return counts.router + counts.shared_experts


def _experts(counts: ParameterCounts) -> int:
    return counts.routed_experts * counts.expert


def _shard(weights: int, ranks: int) -> int:
    return -(-weights // ranks)
