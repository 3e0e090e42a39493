"""Layouts of a run that fit a cluster, the fastest first, each with the words that choose it."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dsv3.commands.console import write, write_json, write_table
from dsv3.config.compose import Composed
from dsv3.plan.description import describe_layout
from dsv3.plan.quantities import duration, size
from dsv3.plan.search import Found, search
from dsv3.plan.setting import Setting

COLUMNS = (
    *("", "layout", "schedule", "micro\nbatch", "recompute", "precision", "peak", "step"),
    "days",
)


def find_layouts(
    runs: Sequence[Composed], setting: Setting, *, most: int, quiet: bool
) -> list[Found]:
    """At most `most` layouts of `setting.gpus` GPUs; `runs` are the run in each precision.

    Raises CapacityError if nothing fits.
    """
    with _progress(quiet=quiet) as progress:
        return search([run.config for run in runs], setting, most=most, progress=progress)


def print_search(found: Sequence[Found], setting: Setting, *, as_json: bool) -> None:
    """The layouts as a table, and the words that choose each."""
    if as_json:
        write_json({"layouts": [_record(each) for each in found]})
        return
    write_table(COLUMNS, search_rows(found), title=search_title(found, setting))
    for number, each in enumerate(found, start=1):
        write(f"{number}: {each.override_line}")


def search_title(found: Sequence[Found], setting: Setting) -> str:
    """What the table shows."""
    model, gpu = found[0].config.model.name, setting.hardware.gpu
    return f"{model} on {setting.gpus:,} {gpu}: layouts that fit, the fastest first"


def search_rows(found: Sequence[Found]) -> list[tuple[str, ...]]:
    """A row of `COLUMNS` for each layout."""
    return [
        (
            str(number),
            describe_layout(each.config.parallelism),
            each.config.parallelism.pipeline_schedule,
            str(each.config.schedule.micro_batch_size),
            each.config.recompute,
            each.config.precision.recipe,
            size(each.peak_bytes),
            duration(each.step.total),
            f"{each.hours / 24:.1f}",
        )
        for number, each in enumerate(found, start=1)
    ]


def _record(found: Found) -> dict[str, Any]:
    layout = found.config.parallelism
    return {
        "overrides": found.override_line.split(),
        "world_size": layout.world_size,
        "parallelism": layout.model_dump(),
        "micro_batch_size": found.config.schedule.micro_batch_size,
        "recompute": found.config.recompute,
        "precision": found.config.precision.recipe,
        "peak_bytes_per_rank": found.peak_bytes,
        "step_seconds": found.step.total,
        "days": found.hours / 24,
        "gpu_hours": found.hours * layout.world_size,
    }


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[float], None]]:
    """A bar on stderr for people who wait at a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("layouts", total=1.0)
        yield lambda share: bar.update(task, completed=share)
