"""How the runs of a sweep are called on dashboards."""

from dsv3.config.root import RunConfig


def tracked(config: RunConfig, *, sweep_id: str, recipe: str | None, arm: str) -> RunConfig:
    """`config` of an arm with group, name and tags filled in where the user left them open.

    Nothing of it is in the run's identity. Without a mirror the configuration stays as it is, so
    that a run of two sweeps is asked for in the same words by both.
    """
    tracking = config.tracking
    if tracking.backend == "none":
        return config
    seed = f"seed {config.seed}"
    of_the_sweep = {
        "group": tracking.group if tracking.group is not None else sweep_id,
        "name": tracking.name if tracking.name is not None else f"{arm} {seed}",
        "tags": tracking.tags or tuple(tag for tag in (recipe, arm, seed) if tag),
    }
    return config.model_copy(update={"tracking": tracking.model_copy(update=of_the_sweep)})
