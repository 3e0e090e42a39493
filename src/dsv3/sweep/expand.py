"""From a command line to every run of its sweep: composed, validated and compared, none started."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsv3.config.compose import Composed, compose, compose_sweep, read_words
from dsv3.config.options import RECIPE
from dsv3.config.overrides import Override
from dsv3.config.recipe import ModelPart, Recipe
from dsv3.config.recipe_rules import in_axis, load_recipe
from dsv3.config.suggest import listed
from dsv3.errors import ConfigError, Problem
from dsv3.sweep.arms import BASE, Arm, Sweep
from dsv3.sweep.confound import refuse_confounded, refuse_one_run_twice

NOTHING = ModelPart()


@dataclass(frozen=True)
class Asked:
    """A recipe for one model, and what the command line says besides."""

    name: str
    recipe: Recipe
    part: ModelPart
    words: tuple[str, ...]
    seeds: str

    @property
    def arms(self) -> dict[str, tuple[str, ...]]:
        """Arms with their words as this model spells them, the baseline first."""
        names = dict.fromkeys([self.recipe.baseline, *self.recipe.arms])
        return {name: self.part.arms.get(name, self.recipe.arms[name]) for name in names}

    def overrides(self, arm: str) -> list[str]:
        """Words of one arm with all of its seeds, the later ones winning."""
        setup = (*self.recipe.setup, *self.part.setup)
        return [*setup, *self.arms[arm], *self.words, self.seeds]


def names_recipe(words: Sequence[str]) -> bool:
    """Whether the command line asks for a recipe."""
    return any(_is_recipe(word) for word in words)


def sweep_of(words: Sequence[str], *, multirun: bool, config_dir: Path | None) -> Sweep:
    """Every run that the command line stands for; a single run is a sweep of one.

    Raises ConfigError with all problems of all runs, and if arms differ in more than their axis.
    """
    if names_recipe(words):
        return _of_recipe(words, config_dir)
    if multirun:
        return _spelled_out(words, config_dir)
    composed = compose(words, config_dir=config_dir)
    return Sweep("run", None, BASE, (Arm(BASE, composed.config, composed.overrides),))


# Recipes ------------------------------------------------------------------------------------------


def _of_recipe(words: Sequence[str], config_dir: Path | None) -> Sweep:
    asked = _asked(words, config_dir)
    composed = _in_every_arm(
        asked.arms, lambda arm: compose_sweep(asked.overrides(arm), config_dir=config_dir)
    )
    # Seed by seed: a sweep that ends early leaves whole pairs.
    runs = [
        Arm(name, one.config, one.overrides)
        for of_a_seed in zip(*composed.values(), strict=True)
        for name, one in zip(composed, of_a_seed, strict=True)
    ]
    sweep = Sweep(asked.name, asked.recipe, asked.recipe.baseline, tuple(runs), asked.arms)
    refuse_confounded(sweep)
    return sweep


def _in_every_arm(
    arms: Sequence[str] | dict[str, tuple[str, ...]], build: Callable[[str], list[Composed]]
) -> dict[str, list[Composed]]:
    """What `build` makes of each arm; ConfigError with the problems of all, each once."""
    built: dict[str, list[Composed]] = {}
    found: dict[Problem, list[str]] = {}
    for arm in arms:
        try:
            built[arm] = build(arm)
        except ConfigError as error:
            for problem in error.problems:
                found.setdefault(problem, []).append(arm)
    if found:
        raise ConfigError([_of_arms(p, names, len(arms)) for p, names in found.items()])
    return built


def _of_arms(problem: Problem, names: list[str], arms: int) -> Problem:
    """Say which arms a problem belongs to, unless it is all of them."""
    if len(names) == arms:
        return problem
    return Problem(problem.setting, f"{problem.rule} [arm {listed(names)}]", problem.remedy)


def _asked(words: Sequence[str], config_dir: Path | None) -> Asked:
    """Take the recipe out of the command line and read the rest; all problems of both at once."""
    problems: list[Problem] = []
    try:
        name = _named([word for word in words if _is_recipe(word)])
        recipe = load_recipe(name, config_dir=config_dir)
    except ConfigError as error:
        problems += error.problems
    rest = [word for word in words if not _is_recipe(word)]
    ((read, wrong),) = read_words([rest], config_dir=config_dir)
    problems += wrong
    if problems:
        raise ConfigError(problems)
    if problems := [p for override in read for p in _about(override, name, recipe)]:
        raise ConfigError(problems)
    part = recipe.models.get(_model(recipe, read, config_dir), NOTHING)
    seeds = [override for override in read if override.key == "seed"]
    own = part.seeds if part.seeds is not None else recipe.seeds
    return Asked(
        name,
        recipe,
        part,
        tuple(setting for o in read if o.key != "seed" for setting in o.settings()),
        f"seed={','.join(seeds[0].values if seeds else map(str, own))}",
    )


def _about(override: Override, name: str, recipe: Recipe) -> list[Problem]:
    written = override.word.written
    if in_axis(override.key, recipe.axis):
        rule = f"is what recipe={name} varies (axis: {listed(recipe.axis)})"
        remedy = f"leave it out; other arms are a recipe of your own that begins with {name}"
        return [Problem(written, rule, remedy)]
    if override.is_sweep and override.key != "seed":
        rule = f"is a sweep beside that of recipe={name}; only seed may have several values"
        return [Problem(written, rule, "give one value, and ask again for each other")]
    return []


def _model(recipe: Recipe, given: Sequence[Override], config_dir: Path | None) -> str:
    """The model's option: the command line's, else the recipe's, else the default."""
    if not recipe.models:
        return ""
    ((setup, _),) = read_words([recipe.setup], config_dir=config_dir)
    named = [o.values[0] for o in (*setup, *given) if o.key == "model"]
    return named[-1] if named else compose(config_dir=config_dir).choices["model"]


def _is_recipe(word: str) -> bool:
    key, equals, _ = word.partition("=")
    return bool(equals) and key.strip().lstrip("+") == RECIPE


def _named(words: Sequence[str]) -> str:
    """The one recipe of the words `recipe=NAME`."""
    values = [word.partition("=")[2].strip() for word in words]
    several = ",".join(values).strip("[]")
    if "," in several or "(" in several:
        one_by_one = "; ".join(f"{RECIPE}={one.strip()}" for one in several.split(","))
        remedy = "train them one after the other; runs that they share are trained once"
        if "(" not in several:
            remedy = f"ask for {one_by_one}: runs that they share are trained once"
        raise ConfigError(Problem(" ".join(words), "a command takes one recipe", remedy))
    return values[0].strip("'\"")


# Sweeps of the command line -----------------------------------------------------------------------


def _spelled_out(words: Sequence[str], config_dir: Path | None) -> Sweep:
    composed = compose_sweep(words, config_dir=config_dir)
    shared = set(composed[0].overrides).intersection(*(each.overrides for each in composed))
    marks = [tuple(o for o in one.overrides if o not in shared) for one in composed]
    arms = tuple(
        Arm(_name(mark), one.config, one.overrides)
        for mark, one in zip(marks, composed, strict=True)
    )
    axis = dict.fromkeys(word.partition("=")[0] for mark in marks for word in mark)
    named = [key.rpartition(".")[2].replace("/", "-") for key in axis if key != "seed"]
    by_name = {
        arm.name: tuple(word for word in mark if not word.startswith("seed="))
        for arm, mark in zip(arms, marks, strict=True)
    }
    sweep = Sweep("-".join(named) or "seeds", None, arms[0].name, arms, by_name)
    refuse_one_run_twice(sweep)
    return sweep


def _name(mark: Sequence[str]) -> str:
    """What differs, seeds left out: seeds are repeats of an arm, not arms."""
    return " ".join(word for word in mark if not word.startswith("seed=")) or BASE
