"""What a command does not need is not imported: help answers at once, printing needs no torch."""

import subprocess
from collections.abc import Callable

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

HEAVY = {"torch", "hydra", "omegaconf", "pydantic", "numpy", "wandb", "deepspeed", "transformers"}

# Runs the command line in this process and says, as its last line, which modules came in.
PROBE = """
import sys
try:
    from dsv3.cli import main
    main()
except SystemExit as stop:
    code = stop.code or 0
else:
    code = 0
print()
print(code, *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def imported_by(run_python: Run, *arguments: str, probe: str = PROBE) -> set[str]:
    """Top-level modules in the process after `dsv3` ended with code 0."""
    done = run_python("-c", probe, *arguments)
    assert done.returncode == 0, done.stderr
    code, *modules = done.stdout.splitlines()[-1].split()
    assert code == "0", done.stdout + done.stderr
    assert "dsv3" in modules
    return set(modules)


def test_help_imports_nothing_heavy(run_python: Run) -> None:
    assert imported_by(run_python, "--help") & HEAVY == set()


@pytest.mark.parametrize("verb", [("train",), ("config",), ("config", "diff"), ("data", "prepare")])
def test_help_of_a_verb_imports_nothing_heavy(run_python: Run, verb: tuple[str, ...]) -> None:
    # typer itself converts a list of arguments with pydantic
    assert imported_by(run_python, *verb, "--help") & (HEAVY - {"pydantic"}) == set()


def test_printing_a_configuration_needs_no_torch(run_python: Run) -> None:
    modules = imported_by(run_python, "train", "--cfg", "job")
    assert {"hydra", "pydantic"} <= modules
    assert modules & {"torch", "deepspeed", "wandb", "transformers", "tokenizers"} == set()


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "model=moe_671b"],
        ["plan", "recipe=table5_balance", "model=moe_228b", "--gpus", "256"],
        ["plan", "model=moe_16b", "--gpus", "16"],
    ],
)
def test_planning_needs_no_torch(run_python: Run, words: list[str]) -> None:
    assert imported_by(run_python, *words) & {"torch", "deepspeed", "numpy"} == set()


def test_the_probe_sees_a_planted_import(run_python: Run) -> None:
    probe = "import dsv3, numpy, sys\nprint(0, *{name.partition('.')[0] for name in sys.modules})"
    assert "numpy" in imported_by(run_python, probe=probe)
