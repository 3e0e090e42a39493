"""Imports point one way, third parties stay at home, and the check sees a violation."""

import tomllib
from pathlib import Path

import pytest

from architecture.imports import (
    MAY_IMPORT,
    OPEN,
    allowed,
    eager_findings,
    home_findings,
    layer_findings,
    mutual_findings,
    torch_findings,
    undeclared_findings,
)
from architecture.source import Source, sources


@pytest.fixture
def package(checkout: Path) -> Path:
    return checkout / "src" / "dsv3"


def _requirements(checkout: Path) -> list[str]:
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *extras["gpu"], *extras["tensorboard"]]


def test_packages_import_downwards_only(package: Path) -> None:
    assert len(sources(package)) > 20
    assert layer_findings(package) == []


def test_no_two_packages_import_each_other(package: Path) -> None:
    assert mutual_findings(package) == []


def test_plan_and_what_it_imports_of_parallel_have_no_torch(package: Path) -> None:
    assert torch_findings(package) == []


def test_third_parties_stay_at_home(package: Path) -> None:
    assert home_findings(package) == []


def test_third_parties_are_declared(package: Path, checkout: Path) -> None:
    assert undeclared_findings(package, _requirements(checkout)) == []


def test_cli_imports_only_typer_and_stdlib_before_a_command_runs(package: Path) -> None:
    for name in ("cli.py", "cli_sweeps.py"):
        assert eager_findings(Source(package, package / name), {"typer"}) == []


def test_the_table_itself_has_no_way_back() -> None:
    for package_name in MAY_IMPORT:
        for other in allowed(package_name) - {package_name}:
            assert package_name in OPEN or package_name not in allowed(other), other


@pytest.mark.parametrize(
    ("file", "code", "found"),
    [
        ("plan/flops.py", "from dsv3.model import Transformer", "plan must not import model"),
        ("plan/flops.py", "def f():\n    import dsv3.train.loop", "plan must not import train"),
        ("ops/rope.py", "from dsv3 import config", "ops must not import config"),
        ("model/moe.py", "from dsv3.engine.groups import create", "model must not import engine"),
        ("data/bpe.py", "from dsv3.cli import main", "data must not import cli"),
        ("errors.py", "import dsv3.config", "errors must not import config"),
        ("runs/lock.py", "from .. import launch", "relative import"),
        ("utils/misc.py", "", "package utils has no place"),
        ("data/a.py", "import importlib\nimportlib.import_module('dsv3.ops.rope')", "import ops"),
    ],
)
def test_a_planted_upward_import_is_found(tmp_path: Path, file: str, code: str, found: str) -> None:
    _plant(tmp_path, file, code)
    (finding,) = layer_findings(tmp_path)
    assert found in finding


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("plan/a.py", "from dsv3.parallel.exchange import Traffic"),
        ("plan/a.py", "from dsv3.parallel import dispatch"),
        ("launch/a.py", "def f():\n    import dsv3.ops.rope"),
        ("parallel/schedule.py", "from dsv3.parallel.wire import TILE"),
        ("parallel/stages.py", "import torch"),
    ],
)
def test_a_planted_way_to_torch_is_found(tmp_path: Path, file: str, code: str) -> None:
    _plant(tmp_path, file, "from dsv3.parallel.mesh import Place\n" + code)
    (finding,) = torch_findings(tmp_path)
    assert "has to stay free of torch" in finding


def test_a_planted_pair_is_found(tmp_path: Path) -> None:
    _plant(tmp_path, "runs/a.py", "import dsv3.launch.local")
    _plant(tmp_path, "launch/b.py", "def f():\n    from dsv3.runs import lock")
    assert mutual_findings(tmp_path) == ["launch and runs import each other"]


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("config/rules.py", "import omegaconf"),
        ("cli.py", "def f():\n    from hydra import compose"),
        ("train/build.py", "import deepspeed"),
        ("model/attention.py", "import transformer_engine.pytorch as te"),
        ("data/shards.py", "from torch.utils.data import Dataset"),
        ("commands/doctor.py", "def f():\n    import torch"),
        ("data/prepare.py", "from rich.progress import Progress"),
        ("train/loop.py", "import typer"),
    ],
)
def test_a_planted_stranger_is_found(tmp_path: Path, file: str, code: str) -> None:
    _plant(tmp_path, file, code)
    (finding,) = home_findings(tmp_path)
    assert "is at home in" in finding


def test_a_planted_undeclared_import_is_found(tmp_path: Path) -> None:
    _plant(tmp_path, "data/a.py", "import yaml\nimport numpy.random\nimport json\nimport pandas")
    (finding,) = undeclared_findings(tmp_path, ["PyYAML>=6", "numpy>=1.26"])
    assert "pandas is no declared dependency" in finding


def test_a_planted_eager_import_is_found(tmp_path: Path) -> None:
    code = "import typer\nimport sys\nimport dsv3.config.compose\ndef f():\n    import torch\n"
    source = _plant(tmp_path, "cli.py", code)
    (finding,) = eager_findings(source, {"typer"})
    assert finding.startswith("cli.py:3 dsv3.config.compose")


def _plant(root: Path, file: str, code: str) -> Source:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    return Source(root, path)
