"""The configuration files are found from a checkout, from a wheel and from an editable install."""

import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dsv3.config.locations import shipped

Run = Callable[..., subprocess.CompletedProcess[str]]

SHIPPED = ("conf", "recipes", "launchers")
COMPOSE = """
import dsv3
from dsv3.config.compose import compose
from dsv3.config.locations import shipped
print(dsv3.__file__)
print(*(shipped(name) for name in ("conf", "recipes", "launchers")), sep="\\n")
print(compose(["model=moe_nano", "balance=aux_free"]).config.model.name)
"""


@pytest.fixture(scope="module")
def built(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with the source archive of the checkout and the wheel made from that archive."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run(
        [*command, str(checkout)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


def test_a_checkout_uses_its_own_files(checkout: Path) -> None:
    assert [shipped(name) for name in SHIPPED] == [checkout / name for name in SHIPPED]


def test_an_unknown_directory_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match=r"neither in .*_shipped nor beside"):
        shipped("gone")


def test_the_wheel_holds_every_shipped_file(wheel: Path, checkout: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    files = [path for name in SHIPPED for path in (checkout / name).rglob("*") if path.is_file()]
    assert len(files) > 20
    missing = {f"dsv3/_shipped/{path.relative_to(checkout).as_posix()}" for path in files} - inside
    assert missing == set()


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path, checkout: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(checkout / "src") for path in (checkout / "src").rglob("*.py")}
    assert {path.as_posix() for path in modules} <= inside
    tops = {name.split("/")[0] for name in inside}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dsv3"}
    assert "dsv3/py.typed" in inside
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in inside)


def test_the_source_archive_can_be_tested(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        inside = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    assert {".ci/run", "Makefile", "constraints.txt", "LICENSE", "tests/conftest.py"} <= inside


def test_an_installed_wheel_composes_in_another_directory(
    wheel: Path, tmp_path: Path, run_python: Run
) -> None:
    site = tmp_path / "site"
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    done = run_python(*pip, "--target", str(site), str(wheel))
    assert done.returncode == 0, done.stderr

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = run_python("-P", "-c", COMPOSE, cwd=elsewhere, env=env)
    assert done.returncode == 0, done.stderr
    module, *directories, model = done.stdout.splitlines()
    assert module == str(site / "dsv3" / "__init__.py")
    assert directories == [str(site / "dsv3" / "_shipped" / name) for name in SHIPPED]
    assert model == "moe_nano"


def test_an_editable_install_is_a_path_entry_without_copies(
    checkout: Path, tmp_path: Path, run_python: Run
) -> None:
    code = "import sys, hatchling.build as b; print(b.build_editable(sys.argv[1]))"
    done = run_python("-c", code, str(tmp_path), cwd=checkout)
    assert done.returncode == 0, done.stderr
    archive = zipfile.ZipFile(tmp_path / done.stdout.split()[-1])
    (entry,) = (name for name in archive.namelist() if ".dist-info/" not in name)
    assert archive.read(entry).decode().strip() == str(checkout / "src")
