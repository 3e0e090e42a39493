"""FP8 copies of the weights: codes for either direction, and a scale for each tile."""

from collections.abc import Sequence

from dsv3.config.root import RunConfig
from dsv3.plan.parameters import count_parameters

TILE = 128 * 128
SCALE_BYTES = 4
DIRECTIONS = 2
"""A product reads its weights one way forward and transposed backward; Hopper's FP8 units take only
one of the two orders, so both are made."""


def copies_bytes(config: RunConfig, parts: Sequence[range]) -> int:
    """Bytes of a rank's FP8 codes, transposed codes and scales for the layers of `parts`.

    Of every weight of a linear layer; embedding, head, router and norms stay as they are (report
    section 3.3.1). They are made once a step and serve all of its micro batches.
    """
    if not config.precision.is_fp8:
        return 0
    counts, layout = count_parameters(config.model), config.parallelism
    weights = 0
    for part in parts:
        moe = max(0, part.stop - max(part.start, config.model.first_k_dense_replace))
        weights += len(part) * counts.attention + (len(part) - moe) * counts.dense_ffn
        local = counts.routed_experts // layout.expert_parallel_size
        weights += moe * (counts.shared_experts + local * counts.expert)
    return DIRECTIONS * (weights + -(-weights // TILE) * SCALE_BYTES)
