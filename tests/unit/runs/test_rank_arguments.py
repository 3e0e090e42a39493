from pathlib import Path

import pytest

from dsv3.runs.rank import EvaluationArguments, RankArguments


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("directory", ["runs/x", "a b/$(c)", "/absolute/run"])
def test_arguments_survive_the_command_line(directory: str, quiet: bool) -> None:
    arguments = RankArguments(Path(directory), "configs/0123456789.yaml", quiet)
    assert RankArguments.from_argv(arguments.to_argv()) == arguments


def test_the_frozen_configuration_is_the_default() -> None:
    assert RankArguments.from_argv(["runs/x"]) == RankArguments(
        Path("runs/x"), "config.yaml", False
    )


@pytest.mark.parametrize("step", [None, 0, 40])
@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("ema", [False, True])
def test_arguments_of_an_evaluation_survive_too(step: int | None, quiet: bool, ema: bool) -> None:
    arguments = EvaluationArguments(Path("a b"), "config.yaml", Path("r/t"), step, quiet, ema)
    assert EvaluationArguments.from_argv(arguments.to_argv()) == arguments
