"""The options of each configuration group, as files: shipped ones and the user's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from dsv3.config.locations import shipped
from dsv3.config.root import RunConfig
from dsv3.config.section import Section
from dsv3.config.suggest import listed
from dsv3.errors import ConfigError, Problem

DEFAULTS_LIST = "config.yaml"
RECIPE = "recipe"
"""The group of recipes: whole sweeps, and so no part of a configuration."""
HARDWARE = "hardware"
"""Where profiles of GPUs lie; `dsv3 plan` reads them, no run has one."""
LAUNCHERS = "launchers"
"""Templates and profiles of clusters, in a user's directory as in the repository."""
FEW_LINES = 4


@dataclass(frozen=True)
class Option:
    """One file of a group, chosen by `group=name`."""

    group: str
    name: str
    path: Path
    is_own: bool

    @property
    def comment(self) -> str:
        """First sentence of the file's leading comment, or its few lines when there is none."""
        text = self.path.read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        leading = list(takewhile(lambda line: line.startswith("#"), lines))
        said = " ".join(line.lstrip("# ") for line in leading if not line.startswith("# @"))
        if said:
            sentence, stop, _ = said.partition(". ")
            return sentence + stop.strip()
        return ", ".join(lines) if len(lines) <= FEW_LINES else ""


Catalogue = Mapping[str, Mapping[str, Option]]
"""Group -> option name -> option."""


def catalogue(config_dir: Path | None = None) -> Catalogue:
    """All groups and options; those of `config_dir` shadow the shipped ones.

    Raises ConfigError if `config_dir` is not a directory of configuration groups.
    """
    found = {group: _options(shipped("conf"), group, is_own=False) for group in _groups()}
    found[RECIPE] = _files(RECIPE, shipped("recipes"), is_own=False)
    if config_dir is not None:
        for group in _own_groups(config_dir):
            found[group].update(_options(config_dir, group, is_own=True))
    return found


def _groups(section: type[Section] = RunConfig, above: str = "") -> list[str]:
    """Sections of the schema that have a directory in conf/, in the schema's order.

    A section of a section is a group too: `schedule/lr_curve`.
    """
    found: list[str] = []
    for name, field in section.model_fields.items():
        kind, group = field.annotation, f"{above}{name}"
        if isinstance(kind, type) and issubclass(kind, Section):
            found += [group] if (shipped("conf") / group).is_dir() else []
            found += _groups(kind, f"{group}/")
    return found


def _own_groups(config_dir: Path) -> list[str]:
    setting = f"--config-dir {config_dir}"
    if not config_dir.is_dir():
        missing = "is not a directory" if config_dir.exists() else "does not exist"
        raise ConfigError(Problem(setting, missing, "name the directory that holds your groups"))
    if (config_dir / DEFAULTS_LIST).exists():
        rule = f"holds a {DEFAULTS_LIST}, but the list of defaults cannot be replaced"
        remedy = "put values into base.yaml and options into GROUP/NAME.yaml"
        raise ConfigError(Problem(setting, rule, remedy))
    known = [*_groups(), RECIPE]
    groups = [group for group in known if (config_dir / group).is_dir()]
    others = (config_dir / "base.yaml").is_file() or any(
        (config_dir / directory).is_dir() for directory in (HARDWARE, LAUNCHERS)
    )
    if not groups and not others:
        rule = f"holds neither base.yaml nor one of the groups {listed(known)}"
        remedy = "an option of yours is DIR/GROUP/NAME.yaml, chosen by GROUP=NAME"
        raise ConfigError(Problem(setting, rule, remedy))
    return groups


def _options(root: Path, group: str, *, is_own: bool) -> dict[str, Option]:
    others = [root / other for other in _groups() if other.startswith(f"{group}/")]
    return _files(group, root / group, others, is_own=is_own)


def _files(
    group: str, folder: Path, others: Sequence[Path] = (), *, is_own: bool
) -> dict[str, Option]:
    """Every file below `folder` as an option, those in directories of `others` left out.

    Recipes lie flat: in a directory below, Hydra would put their keys into a section.
    """
    pattern = "*.yaml" if group == RECIPE else "**/*.yaml"
    names = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in folder.glob(pattern)
        if not any(path.is_relative_to(other) for other in others)
    }
    return {name: Option(group, name, names[name], is_own) for name in sorted(names)}
