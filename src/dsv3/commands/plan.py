"""`dsv3 plan`: what a run, or every run of a sweep, is and takes, before anything starts."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

from dsv3.commands.console import write_json
from dsv3.commands.lint import warn
from dsv3.config.compose import Composed, compose
from dsv3.config.hardware import load_hardware
from dsv3.errors import ConfigError, Problem
from dsv3.plan.imbalance import DEFAULT_MAX_VIOLATION
from dsv3.plan.setting import DEFAULT_HARDWARE, Setting
from dsv3.sweep.expand import configurations, names_recipe

LAYOUT = "parallelism"
FOUND = 10
"""Layouts that a search shows."""


class Options(TypedDict, total=False):
    """What a plan assumes, as the command line has it."""

    hardware: str
    gpus: int | None
    imbalance: float
    usd_per_gpu_hour: float | None
    svg: Path | None
    trace: bool
    published: bool


def plan(
    overrides: Sequence[str],
    *,
    multirun: bool,
    config_dir: Path | None,
    strict: bool,
    as_json: bool,
    **options: Unpack[Options],
) -> int:
    """Print the plan of one run, or of all runs of a sweep or a recipe; returns 0.

    With `gpus` and without a layout of its own, the layouts of one run that fit. Raises ConfigError
    if any of the configurations is wrong, or with `strict` in a known trap; CapacityError if the
    cluster is smaller than a layout, or if nothing fits.
    """
    setting, svg = _setting(options, config_dir), options.get("svg")
    if options.get("published"):
        from dsv3.commands.plan_published import print_published

        return print_published(as_json=as_json)
    runs = configurations(overrides, multirun=multirun, config_dir=config_dir)
    warn([run.config for run in runs], strict=strict, quiet=as_json)
    if options.get("trace"):
        from dsv3.commands.trace import print_trace

        load = options.get("imbalance", DEFAULT_MAX_VIOLATION)
        return print_trace(runs, max_violation=load, as_json=as_json)
    searches = not (multirun or names_recipe(overrides) or _has_layout(overrides))
    if setting.gpus is not None and not searches:
        from dsv3.plan.search import refuse_smaller_cluster

        refuse_smaller_cluster([run.config for run in runs], setting)
    if multirun or names_recipe(overrides):
        from dsv3.commands.plan_sweep import print_sweep

        print_sweep(runs, setting, svg=svg, as_json=as_json)
    elif setting.gpus is not None and searches:
        from dsv3.commands.plan_search import print_search

        found = _in_every_precision(overrides, runs[0], config_dir)
        print_search(found, setting, most=FOUND, as_json=as_json)
    else:
        from dsv3.commands.plan_run import print_run, run_record

        if as_json:
            write_json(run_record(runs[0], setting))
        else:
            print_run(runs[0], setting)
        if svg is not None:
            from dsv3.commands.plan_pipeline import draw_pipeline

            draw_pipeline(svg, runs[0].config, setting)
    return 0


def _setting(options: Options, config_dir: Path | None) -> Setting:
    """What the options say; ConfigError with all that is wrong with them."""
    name, gpus = options.get("hardware", DEFAULT_HARDWARE), options.get("gpus")
    imbalance = options.get("imbalance", DEFAULT_MAX_VIOLATION)
    price = options.get("usd_per_gpu_hour")
    problems = list(_nonsense(gpus, imbalance, price))
    try:
        profile = load_hardware(name, config_dir=config_dir)
    except ConfigError as error:
        raise ConfigError([*error.problems, *problems]) from None
    if problems:
        raise ConfigError(problems)
    return Setting(name, profile, imbalance, price, gpus)


def _nonsense(
    gpus: int | None, imbalance: float, usd_per_gpu_hour: float | None
) -> Iterator[Problem]:
    if gpus is not None and gpus < 1:
        yield Problem(f"--gpus {gpus}", "must be 1 at least")
    if not 0 <= imbalance < float("inf"):
        rule = "must be 0 (an even load) or more: largest load / mean load - 1"
        yield Problem(f"--imbalance {imbalance:g}", rule)
    if usd_per_gpu_hour is not None and not 0 <= usd_per_gpu_hour < float("inf"):
        yield Problem(f"--usd-per-gpu-hour {usd_per_gpu_hour:g}", "must not be negative")


def _has_layout(overrides: Sequence[str]) -> bool:
    """Whether the command line says how a run is spread; then it is not searched for."""
    keys = (word.partition("=")[0].lstrip("+~") for word in overrides)
    return any(key.partition(".")[0] == LAYOUT for key in keys)


def _in_every_precision(
    overrides: Sequence[str], run: Composed, config_dir: Path | None
) -> list[Composed]:
    """The run as it is asked for; and in FP8, unless the precision was chosen."""
    if any(word.partition("=")[0].partition(".")[0] == "precision" for word in overrides):
        return [run]
    try:
        return [run, compose([*overrides, "precision=fp8_block"], config_dir=config_dir)]
    except ConfigError:
        return [run]
