"""What to change when a run does not fit, with the bytes that each change saves."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dsv3.config import rules
from dsv3.config.parallelism import ParallelismConfig
from dsv3.config.root import RunConfig


@dataclass(frozen=True)
class Change:
    """An override that leaves the experiment what it is, and a rank's peak with it."""

    override: str
    saves_bytes: int
    peak_bytes: int


Peak = Callable[[RunConfig], int]


def changes(config: RunConfig, peak: Peak) -> list[Change]:
    """Single changes that save something, the best first; `peak` is that of a configuration."""
    before = peak(config)
    found = []
    for override, changed in _candidates(config):
        if next(iter(rules.broken(changed)), None) is None:
            after = peak(changed)
            found.append(Change(override, before - after, after))
    return sorted((c for c in found if c.saves_bytes > 0), key=lambda c: -c.saves_bytes)


def enough(config: RunConfig, peak: Peak, limit: int) -> list[str] | None:
    """Overrides that together bring the peak to `limit`, the best at each turn; None if none do."""
    chosen: dict[str, str] = {}
    while peak(config) > limit:
        best = min(
            (
                (peak(changed), override, changed)
                for override, changed in _candidates(config)
                if next(iter(rules.broken(changed)), None) is None
            ),
            key=lambda each: each[0],
            default=None,
        )
        if best is None or best[0] >= peak(config):
            return None
        key, _, value = best[1].partition("=")
        chosen[key] = value
        config = best[2]
    return [f"{key}={value}" for key, value in chosen.items()]


def _candidates(config: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """Each change with the configuration it makes."""
    for policy in ("norm_and_up_projection", "moe", "full"):
        if config.recompute not in (policy, "full"):
            yield f"recompute={policy}", config.model_copy(update={"recompute": policy})
    if config.optimizer.moment_dtype == "fp32":
        optimizer = config.optimizer.model_copy(update={"moment_dtype": "bf16"})
        yield "optimizer.moment_dtype=bf16", config.model_copy(update={"optimizer": optimizer})
    size = config.schedule.micro_batch_size
    if size > 1:
        schedule = config.schedule.model_copy(update={"micro_batch_size": size // 2})
        yield (
            f"schedule.micro_batch_size={size // 2}",
            config.model_copy(update={"schedule": schedule}),
        )
    for key, value in _layouts(config.parallelism):
        layout = config.parallelism.model_copy(update={key: value})
        yield f"parallelism.{key}={value}", config.model_copy(update={"parallelism": layout})


def _layouts(layout: ParallelismConfig) -> Iterator[tuple[str, int]]:
    """More ranks, twice as many at a time, and gradients shared out."""
    for key in (
        "expert_parallel_size",
        "expert_data_parallel_size",
        "pipeline_parallel_size",
    ):
        yield key, 2 * getattr(layout, key)
    if layout.zero_stage == 1:
        yield "zero_stage", 2
