"""Bytes that a run leaves on the disk."""

from dataclasses import dataclass

from dsv3.config.root import RunConfig
from dsv3.plan.memory import BYTES_PER_MASTER, BYTES_PER_MOMENT
from dsv3.plan.parameters import count_mtp, count_parameters

METRICS_BYTES, METRICS_BYTES_PER_MOE_LAYER = 800, 105
"""A line of metrics.jsonl as it came out: 1,120 bytes with 3 MoE layers, 1,432 with 6."""


@dataclass(frozen=True)
class DiskBytes:
    """What lies in a run's directory at its fullest, but for evaluations (kilobytes each)."""

    checkpoint: int
    checkpoints: int
    metrics: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.checkpoints + self.metrics


def disk_bytes(config: RunConfig) -> DiskBytes:
    """Masters, moments and the average of every parameter; as many as are kept, and one coming."""
    depth = config.mtp.num_nextn_predict_layers
    weights = count_parameters(config.model).total + count_mtp(config.model, depth=depth).total
    each = BYTES_PER_MASTER + 2 * BYTES_PER_MOMENT[config.optimizer.moment_dtype]
    each += 0 if config.ema.decay is None else BYTES_PER_MASTER
    steps = config.schedule.num_steps
    saved = -(-steps // config.checkpoint.every_steps)
    layers = config.model.num_moe_layers + depth
    return DiskBytes(
        checkpoint=weights * each,
        checkpoints=min(saved, config.checkpoint.keep + 1) * weights * each,
        metrics=steps * (METRICS_BYTES + layers * METRICS_BYTES_PER_MOE_LAYER),
    )
