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
    html: Path | None
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
    cluster is smaller than a layout, if nothing fits, or if a file cannot be written.
    """
    is_sweep = multirun or names_recipe(overrides)
    searches = not (is_sweep or _has_layout(overrides))
    setting = _setting(options, config_dir, searches=searches)
    if options.get("published"):
        from dsv3.commands.plan_published import print_published

        return print_published(as_json=as_json)
    runs = configurations(overrides, multirun=multirun, config_dir=config_dir)
    warn([run.config for run in runs], strict=strict, quiet=as_json)
    if options.get("trace"):
        from dsv3.commands.trace import print_trace

        load = options.get("imbalance", DEFAULT_MAX_VIOLATION)
        return print_trace(runs, max_violation=load, as_json=as_json)
    if setting.gpus is not None and not searches:
        from dsv3.plan.search import refuse_smaller_cluster

        refuse_smaller_cluster([run.config for run in runs], setting)
    svg, html = options.get("svg"), options.get("html")
    if is_sweep:
        _sweep(runs, setting, svg=svg, html=html, as_json=as_json)
    elif setting.gpus is not None and searches:
        found = _in_every_precision(overrides, runs[0], config_dir)
        _search(found, setting, html=html, as_json=as_json)
    else:
        _run(runs[0], setting, svg=svg, html=html, as_json=as_json)
    return 0


def _sweep(
    runs: Sequence[Composed],
    setting: Setting,
    *,
    svg: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    from dsv3.commands.plan_sweep import draw_sweep, plan_sweep, print_sweep

    planned = plan_sweep(runs, setting)
    print_sweep(planned, as_json=as_json)
    if svg is not None:
        draw_sweep(svg, planned)
    if html is not None:
        from dsv3.commands.plan_page import sweep_page, write_page

        write_page(html, sweep_page(planned))


def _search(
    runs: Sequence[Composed], setting: Setting, *, html: Path | None, as_json: bool
) -> None:
    from dsv3.commands.plan_search import find_layouts, print_search

    found = find_layouts(runs, setting, most=FOUND, quiet=as_json)
    print_search(found, setting, as_json=as_json)
    if html is not None:
        from dsv3.commands.plan_page import search_page, write_page

        write_page(html, search_page(found, setting))


def _run(
    run: Composed, setting: Setting, *, svg: Path | None, html: Path | None, as_json: bool
) -> None:
    from dsv3.commands.plan_run import print_run, run_record

    record = run_record(run, setting)
    if as_json:
        write_json(record)
    else:
        print_run(run, record, setting)
    if svg is not None:
        from dsv3.commands.plan_pipeline import draw_pipeline

        draw_pipeline(svg, run.config, setting)
    if html is not None:
        from dsv3.commands.plan_page import run_page, write_page

        write_page(html, run_page(run, record, setting))


def _setting(options: Options, config_dir: Path | None, *, searches: bool) -> Setting:
    """What the options say; ConfigError with all that is wrong with them."""
    name, gpus = options.get("hardware", DEFAULT_HARDWARE), options.get("gpus")
    imbalance = options.get("imbalance", DEFAULT_MAX_VIOLATION)
    price = options.get("usd_per_gpu_hour")
    problems = [*_nonsense(gpus, imbalance, price), *_undrawn(options, searches=searches)]
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


def _undrawn(options: Options, *, searches: bool) -> Iterator[Problem]:
    """Files that were asked for and would not be written."""
    files = {f"--{name}": options.get(name) for name in ("svg", "html")}
    asked = {name: path for name, path in files.items() if path is not None}
    for other in ("published", "trace"):
        if options.get(other):
            for name, path in asked.items():
                rule = f"is not written with --{other}, which prints only"
                yield Problem(f"{name} {path}", rule, f"leave one of {name} and --{other} out")
            return
    if "--svg" in asked and searches and options.get("gpus") is not None:
        rule = "has nothing to draw: a search of layouts has no timeline"
        remedy = "use --html, which has its table, or choose a layout (parallelism=...)"
        yield Problem(f"--svg {asked['--svg']}", rule, remedy)


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
