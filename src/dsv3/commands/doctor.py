"""`dsv3 doctor`: what is here, what is missing, and what to do about it; imports nothing heavy."""

import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from rich.text import Text

from dsv3.commands.check import Check
from dsv3.commands.console import write_json, write_table
from dsv3.commands.doctor_slurm import check_cluster, check_slurm
from dsv3.config.locations import shipped
from dsv3.config.precision import Recipe
from dsv3.data.cache import cache_root
from dsv3.files import probe_writable, reason
from dsv3.machine import Machine, installed_version, this_machine
from dsv3.plan.capacity import describe_machine
from dsv3.plan.quantities import size
from dsv3.plan.te_capacity import DISTRIBUTION, INSTALL, NEEDS, missing

# Where a version outside the pins breaks, and how it shows.
WHY_PINNED = {
    "deepspeed": "the engine relies on how this version lays out ZeRO and expert groups",
    "hydra-core": "the composition is tested with this version only",
    "omegaconf": "Hydra 1.3 does not work with omegaconf 2.4 and later",
    "typer": "the help pages are built on this version's interface",
}
FREE_BYTES_WANTED = 10 * 2**30
MEMORY_BYTES_WANTED = 4 * 2**30
HARDWARE_FP8: tuple[Recipe, ...] = ("fp8_block", "fp8_current", "mxfp8")
FIRST_FP8_CAPABILITY = min(NEEDS[recipe].capability for recipe in HARDWARE_FP8)
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(overrides: Sequence[str], *, config_dir: Path | None, as_json: bool) -> int:
    """Print every check; 0, or 3 if any of them fails.

    With `overrides` that name a cluster its nodes are looked at, too.
    """
    checks = [*all_checks(), *check_slurm()]
    if overrides:
        from dsv3.config.compose import compose

        config = compose(overrides, config_dir=config_dir).config
        if config.launcher.kind == "slurm":
            checks += check_cluster(config, config_dir)
    if as_json:
        write_json({"checks": [asdict(check) for check in checks]})
    else:
        write_table((), [_row(check) for check in checks])
    return 3 if any(check.status == "fail" for check in checks) else 0


def all_checks() -> list[Check]:
    """Look at everything, each thing once and without changing anything."""
    machine = this_machine()
    return [
        check_python(sys.version_info[:2]),
        *map(check_requirement, requirements()),
        check_transformer_engine(machine, installed_version(DISTRIBUTION)),
        *check_recipes(machine, installed_version(DISTRIBUTION)),
        check_machine(machine, installed_version("torch")),
        check_compiler(),
        check_wandb_key(),
        *check_configuration(),
    ]


def requirements() -> list[Requirement]:
    """What dsv3 requires here, without extras: as installed, or else as the checkout says."""
    try:
        lines = metadata.requires("dsv3") or []
    except metadata.PackageNotFoundError:
        project = tomllib.loads((shipped("conf").parent / "pyproject.toml").read_text())
        lines = project["project"]["dependencies"]
    wanted = map(Requirement, lines)
    return [line for line in wanted if line.marker is None or line.marker.evaluate({"extra": ""})]


def check_python(version: tuple[int, int]) -> Check:
    """Hydra 1.3 breaks on Python 3.14; below 3.11 the syntax is missing."""
    detail = f"{platform.python_version()} ({sys.executable})"
    if (3, 11) <= version <= (3, 13):
        return Check("python", "ok", detail)
    return Check("python", "fail", detail, "use Python 3.11, 3.12 or 3.13")


def check_requirement(requirement: Requirement) -> Check:
    """Is the distribution there, in a version dsv3 is made for?"""
    version = installed_version(requirement.name)
    remedy = f"pip install '{requirement}'"
    if version is None:
        return Check(requirement.name, "fail", "not installed", remedy)
    if requirement.specifier.contains(version, prereleases=True):
        return Check(requirement.name, "ok", version)
    detail = f"{version} is not {requirement.specifier}"
    if requirement.name in WHY_PINNED:
        detail += f": {WHY_PINNED[requirement.name]}"
    return Check(requirement.name, "fail", detail, remedy)


def check_transformer_engine(machine: Machine, version: str | None) -> Check:
    """Only FP8 on GPUs needs it, and precision.backend=te."""
    if version is not None:
        return Check(DISTRIBUTION, "ok", version)
    if any(gpu.compute_capability >= FIRST_FP8_CAPABILITY for gpu in machine.gpus):
        return Check(DISTRIBUTION, "warn", "not installed, and the GPUs here can do FP8", INSTALL)
    return Check(DISTRIBUTION, "ok", "not installed; only FP8 on GPUs needs it")


def check_recipes(machine: Machine, version: str | None) -> list[Check]:
    """What each FP8 recipe of the hardware needs, and is it here? If not, nothing is wrong."""
    checks = []
    for recipe in HARDWARE_FP8:
        lacking = missing(recipe, machine, version)
        need = NEEDS[recipe]
        rest = f"torch for CUDA {need.cuda} or newer, which a rank checks"
        detail = f"can run here, with {rest}"
        if lacking:
            what = "; ".join(problem.rule for problem in lacking)
            detail = f"cannot run here: {what}; besides, {rest}"
        checks.append(Check(f"precision={recipe}", "ok", detail))
    return checks


def check_machine(machine: Machine, torch_version: str | None) -> Check:
    """GPUs, cores and memory, and whether torch can use the GPUs."""
    name, detail = "machine", describe_machine(machine)
    if machine.gpu_driver is not None:
        detail += f"; driver {machine.gpu_driver}"
    if machine.gpus and torch_version is not None and torch_version.endswith("+cpu"):
        detail += f"; torch {torch_version} is built without CUDA and uses none of the GPUs"
        return Check(name, "warn", detail, "install a CUDA build of torch")
    if machine.memory_bytes < MEMORY_BYTES_WANTED:
        remedy = f"have {size(MEMORY_BYTES_WANTED)}, or train model=moe_nano only"
        return Check(name, "warn", detail, remedy)
    return Check(name, "ok", detail)


def check_compiler() -> Check:
    """torch.compile on a CPU builds C++."""
    wanted = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    found = next(filter(None, (shutil.which(name) for name in wanted if name)), None)
    if found is None:
        remedy = "install g++ or clang++, or leave launcher.compile=false"
        return Check("C++ compiler", "warn", "none: launcher.compile=true cannot work", remedy)
    return Check("C++ compiler", "ok", found)


def check_wandb_key() -> Check:
    """Whether there is a key, never what it is; without one tracking=wandb stays offline."""
    from dsv3.train.wandb_mirror import has_wandb_key

    there = has_wandb_key(os.environ)
    return Check("wandb key", "ok", "yes" if there else "no: tracking=wandb will be offline")


def check_configuration() -> list[Check]:
    """The default configuration composes, and its directories can be written."""
    try:
        from dsv3.config.compose import compose

        config = compose().config
    except Exception as error:  # noqa: BLE001 - a broken installation may raise anything
        detail = f"{type(error).__name__}: {error}"
        return [Check("configuration", "fail", detail, "reinstall dsv3 with its pinned packages")]
    return [
        Check("configuration", "ok", f"composes from {shipped('conf')}"),
        check_directory("run_root", Path(config.run_root), "run_root=..."),
        check_directory("cache", cache_root(config.data.cache_dir), "data.cache_dir=..."),
    ]


def check_directory(name: str, path: Path, setting: str) -> Check:
    """Can `path` be written, or made, and is there room? Nothing is made to find out."""
    path = path.absolute()
    exists = next(parent for parent in (path, *path.parents) if parent.exists())
    try:
        probe_writable(exists)
    except OSError as error:
        detail = f"{path}: {exists} cannot be written ({reason(error)})"
        return Check(name, "fail", detail, f"point {setting} elsewhere")
    free = shutil.disk_usage(exists).free
    detail = f"{path}: {size(free)} free"
    if free < FREE_BYTES_WANTED:
        return Check(name, "warn", detail, f"make room, or point {setting} elsewhere")
    return Check(name, "ok", detail)


def _row(check: Check) -> tuple[Text, str, str]:
    remedy = f" -> {check.remedy}" if check.remedy else ""
    return Text(check.status, STYLES[check.status]), check.name, f"{check.detail}{remedy}"
