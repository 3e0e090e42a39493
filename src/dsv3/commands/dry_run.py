"""`dsv3 train --dry-run`: what would be trained, and how its arms differ; nothing is started."""

from typing import Any

from dsv3.commands.console import write, write_json, write_table
from dsv3.commands.handing import print_scripts, verdicts
from dsv3.launch.launcher import ClusterLauncher, Launcher
from dsv3.plan.description import describe
from dsv3.plan.parameters import count_parameters
from dsv3.plan.quantities import count, plural
from dsv3.sweep.arms import Sweep
from dsv3.sweep.confound import derived_differences


def print_dry_run(sweep: Sweep, launcher: Launcher, *, as_json: bool) -> None:
    """Print every run with its id and size, what its arms are to tell, and scripts of jobs."""
    if as_json:
        write_json(_record(sweep) | _jobs(sweep, launcher))
        return
    if len(sweep.arms) == 1 and sweep.recipe is None:
        (arm,) = sweep.arms
        write(f"{arm.id}: {describe(arm.config)}")
    else:
        _write_question(sweep)
        _write_runs(sweep)
        _write_derived(sweep)
    if isinstance(launcher, ClusterLauncher):
        print_scripts(launcher, [arm.config for arm in sweep.arms], sweep.name)
    write(f"{plural(len(sweep.arms), 'run')}; nothing was started")


def _jobs(sweep: Sweep, launcher: Launcher) -> dict[str, Any]:
    if not isinstance(launcher, ClusterLauncher):
        return {}
    found = verdicts(launcher, [arm.config for arm in sweep.arms], sweep.name)
    return {
        "jobs": [
            {"script": text, "verdict": verdict, "taken": taken} for text, verdict, taken in found
        ]
    }


def _record(sweep: Sweep) -> dict[str, Any]:
    recipe = sweep.recipe
    return {
        "recipe": sweep.name if recipe is not None else None,
        "question": recipe.question if recipe is not None else None,
        "metric": recipe.metric if recipe is not None else None,
        "baseline": sweep.baseline,
        "arms": {name: list(sweep.marks.get(name, ())) for name in sweep.names},
        "derived": derived_differences(sweep),
        "total_tokens": _tokens(sweep),
        "runs": [arm.record() for arm in sweep.arms],
    }


def _write_question(sweep: Sweep) -> None:
    recipe = sweep.recipe
    if recipe is None:
        return
    rule = recipe.rule
    bound = f", and below {rule.bound:g}" if rule.bound is not None else ""
    write(f"recipe     {sweep.name}")
    write(f"question   {recipe.question}")
    write(f"decided by {recipe.metric}, {rule.better} is better{bound}; baseline {sweep.baseline}")


def _write_runs(sweep: Sweep) -> None:
    rows: list[tuple[str, ...]] = []
    for name in sweep.names:
        label, mark = name, "\n".join(sweep.marks.get(name, ()))
        for arm in sweep.of_arm(name):
            counts = count_parameters(arm.config.model)
            size = (count(counts.total), count(counts.active))
            tokens = count(arm.config.schedule.total_tokens)
            rows.append((label, mark, arm.id, str(arm.config.seed), tokens, *size))
            label = mark = ""
    rows.append(("all runs", "", "", "", count(_tokens(sweep)), "", ""))
    columns: tuple[str, ...] = ("arm", "marked by", "run", "seed", "tokens", "parameters", "active")
    keep = range(7) if sweep.recipe is not None else (0, 2, 3, 4, 5, 6)  # a name is its marks then
    columns, *rows = [tuple(row[i] for i in keep) for row in (columns, *rows)]
    write_table(columns, rows, numbers_from=columns.index("seed"))


def _write_derived(sweep: Sweep) -> None:
    """What follows from the marked differences: part of the answer's price, not of the question."""
    for name, quantities in derived_differences(sweep).items():
        told = [f"{key} {count(a)} -> {count(b)}" for key, (a, b) in quantities.items()]
        if told:
            write(f"follows in {name}, MTP counted: {', '.join(told)}")


def _tokens(sweep: Sweep) -> int:
    return sum(arm.config.schedule.total_tokens for arm in sweep.arms)
