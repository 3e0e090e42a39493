"""Every option shipped in conf/ composes and validates."""

import pytest

from dsv3.config.compose import compose
from dsv3.config.locations import shipped
from dsv3.config.options import catalogue
from dsv3.errors import ConfigError

CATALOGUE = catalogue()
OPTIONS = [
    (group, name)
    for group, options in CATALOGUE.items()
    if group != "recipe"  # a sweep, not a part of a configuration: test_recipes.py
    for name in options
]
NEEDS = {
    ("data", "jsonl"): ["data.path=files.jsonl"],
    ("launcher", "slurm"): ["launcher.profile=test"],
}


def test_the_options_are_all_files_of_conf() -> None:
    files = {path.relative_to(shipped("conf")).as_posix() for path in shipped("conf").rglob("*")}
    yaml = {name for name in files if name.endswith(".yaml")}
    assert len(OPTIONS) >= 15
    no_options = {"config.yaml", "base.yaml", "recompute/full.yaml"}
    assert yaml == {f"{g}/{name}.yaml" for g, name in OPTIONS} | no_options


@pytest.mark.parametrize("model", CATALOGUE["model"])
def test_a_model_is_complete_by_itself(model: str) -> None:
    composed = compose([f"model={model}"])
    assert composed.config.model.name == model
    assert composed.choices["model"] == model


@pytest.mark.parametrize(("group", "name"), OPTIONS, ids=lambda value: value)
def test_an_option_is_valid_with_some_model(group: str, name: str) -> None:
    """A layout of 16 stages does not fit 6 layers, but it must fit a model that is shipped."""
    problems = []
    models = [name] if group == "model" else CATALOGUE["model"]
    for model in models:
        try:
            overrides = [f"model={model}", f"{group}={name}", *NEEDS.get((group, name), [])]
            composed = compose(overrides)
        except ConfigError as error:
            problems.append(f"model={model}: {error}")
            continue
        assert composed.choices[group] == name
        return
    pytest.fail("\n".join(problems))
