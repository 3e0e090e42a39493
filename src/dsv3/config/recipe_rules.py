"""Loading a recipe: everything that is wrong with its file, at once, before a run is composed."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dsv3.config.compose import merged_recipe, read_words
from dsv3.config.keys import find, keys
from dsv3.config.options import RECIPE, Catalogue, catalogue
from dsv3.config.overrides import Override
from dsv3.config.recipe import ModelPart, Recipe, Rule
from dsv3.config.suggest import did_you_mean, listed
from dsv3.errors import ConfigError, Problem

ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Words:
    """One list of overrides in a recipe: where it stands, and what could be read of it."""

    place: str
    arm: str | None
    written: tuple[str, ...]
    read: tuple[Override, ...]


def load_recipe(name: str, *, config_dir: Path | None = None) -> Recipe:
    """The recipe `name`, the user's own first.

    Raises ConfigError with every problem of the file, each naming it.
    """
    plain = merged_recipe(name, config_dir=config_dir)
    options = catalogue(config_dir)
    file = options[RECIPE][name].path
    try:
        recipe = Recipe.model_validate(plain)
    except ValidationError as error:
        found = [_finding(detail) for detail in error.errors(include_url=False)]
        raise ConfigError([_in_file(file, problem) for problem in found]) from None
    lists, problems = _read_all(recipe, config_dir)
    problems += [problem for rule in _RULES for problem in rule(recipe, options)]
    problems += [problem for words in lists for problem in _about_words(words, recipe)]
    problems += _twins(lists, recipe)
    if problems:
        raise ConfigError([_in_file(file, problem) for problem in dict.fromkeys(problems)])
    return recipe


def in_axis(key: str, axis: tuple[str, ...]) -> bool:
    """Whether a group or key is one of `axis`, or below one."""
    path = key.replace("/", ".")
    tops = [one.replace("/", ".") for one in axis]
    return any(path == top or path.startswith(f"{top}.") for top in tops)


def _in_file(file: Path, problem: Problem) -> Problem:
    setting = f"{file}: {problem.setting}" if problem.setting else f"{file}"
    return Problem(setting, problem.rule, problem.remedy)


# Words --------------------------------------------------------------------------------------------


def _read_all(recipe: Recipe, config_dir: Path | None) -> tuple[list[Words], list[Problem]]:
    found: list[Words] = []
    problems: list[Problem] = []
    lists = list(_lists(recipe))
    understood = read_words([written for _, _, written in lists], config_dir=config_dir)
    for (place, arm, written), (read, wrong) in zip(lists, understood, strict=True):
        found.append(Words(place, arm, written, tuple(read)))
        problems += [Problem(f"{place}: {p.setting}", p.rule, p.remedy) for p in wrong]
    return found, problems


def _lists(recipe: Recipe) -> Iterator[tuple[str, str | None, tuple[str, ...]]]:
    """Every list of words: its place, its arm if it is one's, and the words."""
    yield "setup", None, recipe.setup
    for arm, words in recipe.arms.items():
        yield f"arms.{arm}", arm, words
    for model, part in recipe.models.items():
        yield f"models.{model}.setup", None, part.setup
        for arm, words in part.arms.items():
            yield f"models.{model}.arms.{arm}", arm, words


def _about_words(words: Words, recipe: Recipe) -> Iterator[Problem]:
    for override in words.read:
        setting = f"{words.place}: {override.word.written}"
        inside = in_axis(override.key, recipe.axis)
        if override.is_sweep:
            several = f"stands for {len(override.values)} values"
            yield Problem(setting, several, "an arm is one configuration: make an arm of each")
        elif override.key == "seed":
            yield Problem(setting, "seeds are repeats of every arm", "list them in `seeds`")
        elif override.key == "model" and words.place.startswith("models."):
            yield Problem(setting, "is there for that model alone", "leave the word out")
        elif words.arm is not None and not inside:
            yield _second_difference(setting, words, recipe)
        elif words.arm is None and inside:
            rule = f"is in the axis ({listed(recipe.axis)}), which only arms set"
            yield Problem(setting, rule, "move it into the arms")
    if words.arm not in (None, recipe.baseline) and not words.written:
        rule = f"has no words: it equals the baseline {recipe.baseline!r}"
        yield Problem(words.place, rule, "write what marks the arm, as in [balance=aux_loss]")


def _second_difference(setting: str, words: Words, recipe: Recipe) -> Problem:
    marks = [o.word.written for o in words.read if in_axis(o.key, recipe.axis)]
    beside = f"a second difference beside {listed(marks)}" if marks else "no difference to ask of"
    rule = f"is {beside}: arms differ in the axis alone ({listed(recipe.axis)})"
    return Problem(setting, rule, "give it to every arm in `setup`, or leave it out")


def _twins(lists: list[Words], recipe: Recipe) -> Iterator[Problem]:
    """Arms of the same words, for any of the models."""
    spelled = {words.place: frozenset(o.settings() for o in words.read) for words in lists}
    for model in [None, *recipe.models]:
        seen: dict[frozenset[tuple[str, ...]], str] = {}
        for arm in recipe.arms:
            own = f"models.{model}.arms.{arm}"
            place = own if own in spelled else f"arms.{arm}"
            twin = seen.setdefault(spelled[place], place)
            if twin != place and spelled[place]:
                yield Problem(place, f"has the words of {twin}", "take one of the arms out")


# Rules on the rest --------------------------------------------------------------------------------


def _baseline_is_an_arm(recipe: Recipe, _: Catalogue) -> Iterator[Problem]:
    if recipe.baseline not in recipe.arms:
        meant = did_you_mean(recipe.baseline, recipe.arms) or f"arms: {listed(recipe.arms)}"
        yield Problem(f"baseline={recipe.baseline}", "is no arm of this recipe", meant)


def _arms_have_names(recipe: Recipe, _: Catalogue) -> Iterator[Problem]:
    for arm in recipe.arms:
        if ARM_NAME.fullmatch(arm) is None:
            rule = "is no name: letters, digits and _ . + - after a letter or a digit"
            yield Problem(f"arms.{arm!r}", rule, "name it as a table should, as in aux_free")


def _axis_is_known(recipe: Recipe, options: Catalogue) -> Iterator[Problem]:
    groups = [group for group in options if group != RECIPE]
    for entry in recipe.axis:
        if entry == "seed":
            yield Problem("axis: seed", "seeds are repeats of every arm", "list them in `seeds`")
        elif entry not in groups and find(entry.replace("/", ".")) is None:
            meant = did_you_mean(entry, [*groups, *keys()])
            yield Problem(f"axis: {entry}", "is neither a group nor a key", meant)


def _models_are_options(recipe: Recipe, options: Catalogue) -> Iterator[Problem]:
    for model, part in recipe.models.items():
        if model not in options["model"]:
            choice = f"options: {listed(options['model'])}"
            meant = did_you_mean(model, options["model"])
            remedy = f"{meant} ({choice})" if meant else choice
            yield Problem(f"models.{model}", "there is no such model", remedy)
        for arm in part.arms:
            if arm not in recipe.arms:
                meant = did_you_mean(arm, recipe.arms) or f"arms: {listed(recipe.arms)}"
                yield Problem(f"models.{model}.arms.{arm}", "is no arm of this recipe", meant)


def _seeds_are_different(recipe: Recipe, _: Catalogue) -> Iterator[Problem]:
    lists = {"seeds": recipe.seeds}
    lists |= {f"models.{name}.seeds": part.seeds or () for name, part in recipe.models.items()}
    for place, seeds in lists.items():
        if len(set(seeds)) < len(seeds):
            yield Problem(f"{place}={listed(seeds)}", "names a seed twice", "keep one of each")


_RULES = (
    _baseline_is_an_arm,
    _arms_have_names,
    _axis_is_known,
    _models_are_options,
    _seeds_are_different,
)


# Findings of pydantic -----------------------------------------------------------------------------


def _finding(detail: ErrorDetails) -> Problem:
    path = ".".join(str(part) for part in detail["loc"])
    said = detail["msg"].replace("Input should be", "must be")
    setting = path
    if isinstance(value := detail["input"], str | int | float | bool) or value is None:
        setting = f"{path}={'null' if value is None else value}"
    match detail["type"]:
        case "missing":
            return Problem(path, "is missing", _described(path))
        case "extra_forbidden":
            siblings = _siblings(detail["loc"])
            meant = did_you_mean(f"{detail['loc'][-1]}", siblings) or f"keys: {listed(siblings)}"
            return Problem(setting, "there is no such key", meant)
        case "literal_error":
            choices = _choices(detail)
            meant = did_you_mean(f"{value}", choices)
            return Problem(setting, f"must be one of {listed(choices)}", meant)
        case "too_short":
            return Problem(path, "has too few entries", _described(path))
        case _:
            return Problem(setting, said[0].lower() + said[1:])


def _siblings(place: tuple[int | str, ...]) -> list[str]:
    parts: Mapping[int, type[BaseModel]] = {1: Recipe, 2: Rule, 3: ModelPart}
    return list(parts[len(place)].model_fields)


def _choices(detail: ErrorDetails) -> list[str]:
    """The names a Literal allows: of `metric`, `derived` and `rule.better`."""
    head, last = detail["loc"][0], detail["loc"][-1]
    if head == "rule":
        return list(get_args(Rule.model_fields[f"{last}"].annotation))
    annotation = Recipe.model_fields[f"{head}"].annotation
    inner = get_args(annotation)
    return list(get_args(inner[0]) if inner[1:] == (...,) else inner)


def _described(path: str) -> str:
    """What the missing key is, in the schema's words."""
    head, _, rest = path.partition(".")
    kind: type[BaseModel] = Rule if head == "rule" and rest else Recipe
    info = kind.model_fields.get(rest or head)
    return "" if info is None else f"{info.description}"
