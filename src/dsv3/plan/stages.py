"""Which layers each part of a pipeline holds, from the configuration alone."""

from functools import lru_cache

from dsv3.config.model import ModelConfig
from dsv3.config.root import RunConfig
from dsv3.parallel.stages import cut_by_sums
from dsv3.plan.flops import (
    dense_layer_flops_per_token,
    head_flops_per_token,
    moe_layer_flops_per_token,
    mtp_flops_per_token,
)


def layer_ranges(config: RunConfig) -> list[range]:
    """Layers of each part of the model, in order; the costliest part costs as little as it can.

    A layer costs its FLOPs per token. The first part also looks up the embedding, for nothing; the
    last has the final norm, the head and the MTP modules, each with another pass through the head.
    """
    depth = config.mtp.num_nextn_predict_layers
    return list(
        _cut(config.model, config.schedule.sequence_length, depth, config.parallelism.parts)
    )


@lru_cache(maxsize=256)
def _cut(model: ModelConfig, length: int, depth: int, parts: int) -> tuple[range, ...]:
    layers, dense = model.num_hidden_layers, model.first_k_dense_replace
    dense_layer = dense_layer_flops_per_token(model, sequence_length=length)
    moe_layer = moe_layer_flops_per_token(model, sequence_length=length)
    end = head_flops_per_token(model) + mtp_flops_per_token(
        model, sequence_length=length, depth=depth
    )

    def before(count: int) -> int:
        """Cost of the first `count` layers, with the end of the model in the last."""
        cost = min(count, dense) * dense_layer + max(0, count - dense) * moe_layer
        return cost + (end if count == layers else 0)

    return tuple(cut_by_sums(before, layers, parts))
