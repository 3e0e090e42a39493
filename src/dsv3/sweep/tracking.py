"""How the runs of a sweep are called on dashboards."""

from dsv3.config.root import RunConfig
from dsv3.sweep.record import SweepRecord


def tracked(config: RunConfig, record: SweepRecord, arm: str) -> RunConfig:
    """`config` of an arm of a sweep with group, name and tags where the user left them open.

    Nothing of it is in the run's identity. Without a mirror the configuration stays as it is, so
    that a run of two sweeps is asked for in the same words by both.
    """
    tracking = config.tracking
    if tracking.backend == "none":
        return config
    seed = f"seed {config.seed}"
    recipe = record.name if record.recipe is not None else None
    of_the_sweep = {
        "group": tracking.group if tracking.group is not None else record.id,
        "name": tracking.name if tracking.name is not None else f"{arm} {seed}",
        "tags": tracking.tags or tuple(tag for tag in (recipe, arm, seed) if tag),
    }
    return config.model_copy(update={"tracking": tracking.model_copy(update=of_the_sweep)})
