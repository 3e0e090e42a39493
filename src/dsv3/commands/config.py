"""`dsv3 config show|ls|diff|lint`, and `--cfg job` of other verbs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsv3.commands.console import write, write_json, write_table
from dsv3.commands.lint import as_data, warn
from dsv3.config.compose import Composed, compose, compose_sweep
from dsv3.config.diff import differences
from dsv3.config.linter import lint_all
from dsv3.config.options import Catalogue, catalogue
from dsv3.config.suggest import did_you_mean, listed
from dsv3.config.yaml_text import dump
from dsv3.errors import ConfigError, Problem
from dsv3.sweep.expand import configurations, names_recipe, sweep_of

AGAINST = "vs"
"""Stands between the sets of overrides that `diff` compares."""


def show(
    overrides: Sequence[str],
    *,
    what: str = "job",
    multirun: bool = False,
    package: str | None = None,
    config_dir: Path | None = None,
    as_json: bool = False,
) -> int:
    """Print the composed configuration, or one for each arm."""
    if what != "job":
        rule = "only the configuration of the job can be printed"
        raise ConfigError(Problem(f"--cfg {what}", rule, "write --cfg job"))
    arms = configurations(overrides, multirun=multirun, config_dir=config_dir)
    if not multirun and not names_recipe(overrides):
        data = _part(arms[0], package)
        write_json(data) if as_json else write(dump(data))
        return 0
    parts = [_part(arm, package) for arm in arms]
    if as_json:
        write_json(
            [{"overrides": a.overrides, "config": p} for a, p in zip(arms, parts, strict=True)]
        )
        return 0
    for number, (arm, part) in enumerate(zip(arms, parts, strict=True), start=1):
        write(f"---\n# arm {number} of {len(arms)}: {' '.join(arm.overrides)}\n{dump(part)}")
    return 0


def ls(group: str | None, *, config_dir: Path | None = None, as_json: bool = False) -> int:
    """List groups and options, with the comment of each and a mark at the defaults."""
    groups = catalogue(config_dir)
    if group is not None:
        groups = {group: groups[group]} if group in groups else _no_group(group, groups)
    defaults = compose(config_dir=config_dir).choices
    if as_json:
        write_json(
            {g: [_option(o, defaults) for o in group_.values()] for g, group_ in groups.items()}
        )
        return 0
    rows = [
        [
            "" if number else name,
            f"{'*' if defaults.get(name) == option.name else ' '} {option.name}",
            option.comment + (f" [{option.path}]" if option.is_own else ""),
        ]
        for name, options in groups.items()
        for number, option in enumerate(options.values())
    ]
    write_table(["group", "  option", "* is the default"], rows)
    return 0


def diff(words: Sequence[str], *, config_dir: Path | None = None, as_json: bool = False) -> int:
    """Compare the arms of sweep lists, recipes and sets between `vs`; one alone with the default.

    Of a recipe the runs of its first seed are compared.
    """
    sets: list[list[str]] = [[]]
    for word in words:
        if word == AGAINST:
            sets.append([])
        else:
            sets[-1].append(word)
    arms = _arms_of_all(sets, config_dir)
    if len(arms) == 1:
        arms.insert(0, compose(config_dir=config_dir))
    found = differences([_part(arm, None) for arm in arms])
    titles = [" ".join(arm.overrides) or "default" for arm in arms]
    if as_json:
        write_json({"arms": [arm.overrides for arm in arms], "differences": found})
    elif found:
        rows = [[key, *(_short(value) for value in values)] for key, values in found.items()]
        write_table(["key", *titles], rows)
    else:
        write(f"no difference between {listed(titles)}")
    return 0


def lint(
    overrides: Sequence[str],
    *,
    multirun: bool = False,
    config_dir: Path | None = None,
    strict: bool = False,
    as_json: bool = False,
) -> int:
    """Print the known traps a configuration, or any arm of a sweep, is in; returns 0.

    Raises ConfigError with all of them if `strict` and there are any.
    """
    arms = configurations(overrides, multirun=multirun, config_dir=config_dir)
    configs = [arm.config for arm in arms]
    if strict:
        warn(configs, strict=True, quiet=as_json)
    findings = lint_all(configs)
    if as_json:
        write_json(
            {"runs": [{"overrides": a.overrides, "warnings": as_data(a.config)} for a in arms]}
        )
    elif findings:
        rows = [[f.id, f.setting, f.reason, f.remedy] for f in findings]
        write_table(["warning", "setting", "reason", "remedy"], rows)
    else:
        write("no warnings")
    return 0


def _arms_of_all(sets: Sequence[Sequence[str]], config_dir: Path | None) -> list[Composed]:
    arms: list[Composed] = []
    problems: list[Problem] = []
    for one in sets:
        try:
            arms += _arms(one, config_dir)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return arms


def _arms(words: Sequence[str], config_dir: Path | None) -> Sequence[Composed]:
    """The arms of a sweep; those of a recipe once, because their seeds are repeats."""
    if not names_recipe(words):
        return compose_sweep(words, config_dir=config_dir)
    sweep = sweep_of(words, multirun=True, config_dir=config_dir)
    first = [sweep.of_arm(name)[0] for name in sweep.names]
    return [Composed(run.config, run.overrides) for run in first]


def _part(composed: Composed, package: str | None) -> Any:
    data: Any = composed.config.model_dump(mode="json")
    if package is None:
        return data
    for name in package.split("."):
        if not isinstance(data, dict) or name not in data:
            names = list(data) if isinstance(data, dict) else []
            rule = f"there is no {name!r} in the configuration"
            raise ConfigError(Problem(f"--package {package}", rule, did_you_mean(name, names)))
        data = data[name]
    return data


def _no_group(group: str, groups: Catalogue) -> Catalogue:
    remedy = did_you_mean(group, groups) or f"groups: {listed(groups)}"
    raise ConfigError(Problem(f"config ls {group}", "there is no such group", remedy))


def _option(option: Any, defaults: Any) -> dict[str, Any]:
    return {
        "name": option.name,
        "comment": option.comment,
        "default": defaults.get(option.group) == option.name,
        "own": option.is_own,
    }


def _short(value: Any) -> str:
    return "null" if value is None else str(value)
