"""An ablation is one marked difference: resolved arms are compared before anything starts."""

from collections.abc import Iterator, Mapping
from typing import Any

from dsv3.config.diff import differences
from dsv3.config.recipe import Derived, Recipe
from dsv3.config.recipe_rules import in_axis
from dsv3.config.root import RunConfig
from dsv3.config.suggest import listed
from dsv3.errors import ConfigError, Problem
from dsv3.plan.flops import mtp_flops_per_token, training_flops_per_token
from dsv3.plan.parameters import count_mtp, count_parameters
from dsv3.runs.identity import identity_digest
from dsv3.sweep.arms import Arm, Sweep

Pair = tuple[Any, Any]
"""A value in the baseline and in an arm."""


def refuse_confounded(sweep: Sweep) -> None:
    """Raise ConfigError if arms of a recipe differ in anything it neither varies nor declares.

    Arm and baseline of the same seed are compared key by key, with everything that files and
    references brought; keys that do not change what a run computes count too. Also refused: arms
    that do not differ at all.
    """
    assert sweep.recipe is not None, f"{sweep.name} is no recipe"
    problems: dict[Problem, None] = {}
    base = {arm.config.seed: arm for arm in sweep.of_arm(sweep.baseline)}
    for arm in sweep.arms:
        if arm.name != sweep.baseline:
            found = _of_pair(base[arm.config.seed], arm, sweep.name, sweep.recipe)
            problems |= dict.fromkeys(found)
    refuse_one_run_twice(sweep, list(problems))


def refuse_one_run_twice(sweep: Sweep, found: list[Problem] | None = None) -> None:
    """Raise ConfigError, with what was found before, if two arms are one and the same run."""
    seen: dict[str, Arm] = {}
    problems: dict[tuple[str, str], Problem] = {}
    for arm in sweep.arms:
        twin = seen.setdefault(identity_digest(arm.config), arm)
        if twin is not arm and (twin.name, arm.name) not in problems:
            problems[twin.name, arm.name] = _twin(twin, arm)
    if problems or found:
        raise ConfigError([*(found or []), *problems.values()])


def derived_differences(sweep: Sweep) -> dict[str, dict[Derived, Pair]]:
    """For each arm: quantities that are not the baseline's, as (baseline's, arm's)."""
    (base, *_) = sweep.of_arm(sweep.baseline)
    expected = derived(base.config)
    table = {}
    for name in sweep.names:
        values = derived(sweep.of_arm(name)[0].config)
        differing = {key: (expected[key], value) for key, value in values.items()}
        table[name] = {key: pair for key, pair in differing.items() if pair[0] != pair[1]}
    return table


def derived(config: RunConfig) -> dict[Derived, int]:
    """Quantities that follow from a configuration; unlike the plan's, with the MTP modules."""
    model, schedule = config.model, config.schedule
    depth, length = config.mtp.num_nextn_predict_layers, schedule.sequence_length
    main, modules = count_parameters(model), count_mtp(model, depth=depth)
    flops = training_flops_per_token(model, sequence_length=length)
    flops += mtp_flops_per_token(model, sequence_length=length, depth=depth)
    return {
        "parameters.total": main.total + modules.total,
        "parameters.active": main.active + modules.active,
        "flops_per_token": flops,
        "tokens": schedule.total_tokens,
        "steps": schedule.num_steps,
    }


def _of_pair(base: Arm, arm: Arm, name: str, recipe: Recipe) -> Iterator[Problem]:
    """What an arm has beside its marked difference; the marked one is named with each."""
    pairs = differences([base.config.model_dump(mode="json"), arm.config.model_dump(mode="json")])
    marked = {key: (a, b) for key, (a, b) in pairs.items() if in_axis(key, recipe.axis)}
    setting = f"recipe={name}, arm {arm.name}"
    varies = f"varies {_listed(marked)}" if marked else "varies nothing in the axis"
    for key, (old, new) in pairs.items():
        if key not in marked:
            yield Problem(
                setting,
                f"{varies}, and differs from the baseline {base.name} in {_shown(key, old, new)},"
                f" too: an arm is one marked difference (axis: {listed(recipe.axis)})",
                f"set {key} for every arm in `setup`, or put it into the axis",
            )
    expected, values = derived(base.config), derived(arm.config)
    for quantity, value in values.items():
        if value != expected[quantity] and quantity not in recipe.derived:
            yield Problem(
                setting,
                f"{varies}, from which {_shown(quantity, expected[quantity], value)} follows",
                f"declare {quantity} in `derived`, if that difference is meant",
            )


def _twin(one: Arm, other: Arm) -> Problem:
    data = [arm.config.model_dump(mode="json") for arm in (one, other)]
    setting = f"arms {one.name} and {other.name}"
    if keys := differences(data):
        rule = f"differ in {listed(keys)} alone, which is no part of what a run computes"
        return Problem(setting, f"{rule}: both are the run {one.id}", "run.tag tells runs apart")
    return Problem(setting, f"are the same run {one.id}", "take one of them out")


def _listed(pairs: Mapping[str, Pair]) -> str:
    return listed(_shown(key, old, new) for key, (old, new) in pairs.items())


def _shown(key: str, old: object, new: object) -> str:
    shown = ["null" if value is None else f"{value}" for value in (old, new)]
    return f"{key} ({shown[0]} -> {shown[1]})"
