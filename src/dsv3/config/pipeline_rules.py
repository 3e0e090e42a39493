"""Rules of pipelines: layers for every part, and a step that keeps all stages busy."""

from collections.abc import Iterator

from dsv3.config.root import RunConfig
from dsv3.errors import Problem


def parts_have_layers(config: RunConfig) -> Iterator[Problem]:
    """Every part of the model holds at least one block; dualpipev has two parts per stage."""
    layout, layers = config.parallelism, config.model.num_hidden_layers
    if layout.parts <= layers:
        return
    each = layout.parts // layout.pipeline_parallel_size
    rule = f"must not exceed model.num_hidden_layers={layers}"
    if each > 1:
        rule = (
            f"makes {layout.parts} parts under parallelism.pipeline_schedule="
            f"{layout.pipeline_schedule}, more than model.num_hidden_layers={layers}"
        )
    remedies = [f"use 1 to {layers // each}"] if layers >= each else []
    if each > 1 and layout.pipeline_parallel_size <= layers:
        remedies.append("parallelism.pipeline_schedule=1f1b")
    yield Problem(
        f"parallelism.pipeline_parallel_size={layout.pipeline_parallel_size}",
        rule,
        ", or ".join(remedies),
    )


def pipelines_keep_whole_gradients(config: RunConfig) -> Iterator[Problem]:
    """ZeRO 2 gives a gradient away after every backward; a pipeline's are whole at the end only."""
    layout = config.parallelism
    if layout.parts > 1 and layout.zero_stage != 1:
        yield Problem(
            f"parallelism.zero_stage={layout.zero_stage}",
            "must be 1 with a pipeline (parallelism.pipeline_parallel_size="
            f"{layout.pipeline_parallel_size}): its gradients stay on the rank until the step ends",
            "use parallelism.zero_stage=1",
        )


def a_full_step_fills_the_pipeline(config: RunConfig) -> Iterator[Problem]:
    """DualPipeV has a steady state from 2 x stages micro batches on.

    Asked of a step of full size, cut as finely as it can be. On the way up a step may have fewer,
    as the first ones of the report's own ramp: these run in the same order, less steady.
    """
    layout, batch = config.parallelism, config.schedule.global_batch_size
    ranks, stages = layout.data_parallel_size, layout.pipeline_parallel_size
    fewest = layout.fewest_micro_batches
    if layout.pipeline_schedule == "1f1b" or batch // ranks >= fewest:
        return
    remedies = [f"use schedule.global_batch_size={fewest * ranks} at least"]
    if batch // ranks >= 2:
        remedies.append(f"parallelism.pipeline_parallel_size={batch // ranks // 2} at most")
    yield Problem(
        "parallelism.pipeline_schedule=dualpipev",
        f"needs {fewest} micro batches per rank (2 x parallelism.pipeline_parallel_size={stages}),"
        f" but a rank's share of schedule.global_batch_size={batch} is {batch // ranks}",
        ", ".join([*remedies, "or parallelism.pipeline_schedule=1f1b"]),
    )


RULES = (parts_have_layers, pipelines_keep_whole_gradients, a_full_step_fills_the_pipeline)
