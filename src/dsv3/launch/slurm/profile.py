"""A cluster as its users know it: `launchers/profiles/NAME.yaml`, the user's own or shipped."""

import re
import unicodedata
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from dsv3.config.launcher import TIME_LIMIT
from dsv3.config.locations import shipped
from dsv3.config.options import LAUNCHERS
from dsv3.config.suggest import did_you_mean, listed
from dsv3.config.yaml_text import read_vetted
from dsv3.errors import ConfigError, Problem

# A word of an #SBATCH line: sbatch splits these at blanks, and reads quotes, backslashes and #.
_WORD = re.compile(r"[A-Za-z0-9_.,:;@%+=&|*()\[\]/~!-]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def unprintable(text: str) -> bool:
    """Whether no script should hold this: control characters, lone surrogates."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def _one_line(text: str) -> str:
    if unprintable(text):
        raise ValueError("must be one line without control characters")
    return text


def _word(text: str) -> str:
    if not _WORD.fullmatch(text):
        raise ValueError("must be one word for sbatch: no blanks, quotes, backslash or #")
    return text


def _time(text: str) -> str:
    if not re.fullmatch(TIME_LIMIT, text, re.ASCII):
        raise ValueError("must be a time limit as in 4:00:00 or 2-00:00:00")
    return text


def _variables(environment: dict[str, str]) -> dict[str, str]:
    for name, value in environment.items():
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a variable")
        _one_line(value)
    return environment


class _Loader(yaml.SafeLoader):
    """Numbers stay as they are written: 4:00:00 is a time, 0.10 may be a version."""


_NUMBERS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

Line = Annotated[str, AfterValidator(_one_line)]
Word = Annotated[str, AfterValidator(_word)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Container(_Strict):
    """A container for the ranks, through the pyxis plugin of srun."""

    image: Line = Field(description="As --container-image takes it: a .sqsh file or REGISTRY#NAME.")
    mounts: tuple[Line, ...] = Field((), description="SOURCE:TARGET; runs and data have to be in.")
    workdir: Line | None = Field(
        None, description="Directory the ranks start in; null: as outside."
    )


class Profile(_Strict):
    """What a cluster has and wants; everything about a model or a run is elsewhere."""

    time: Annotated[str, AfterValidator(_time)] = Field(
        description="Time limit of a job; launcher.time has the last word."
    )
    cpus_per_node: int = Field(gt=0, description="Cores of a node, shared out over its ranks.")
    gpus_per_node: int = Field(0, ge=0, description="GPUs of a node; each rank has one.")
    gpu_type: Word | None = Field(None, description="Name of the GPUs, if Slurm wants one.")
    gpu_memory_gib: float | None = Field(None, gt=0, description="Memory of one GPU.")
    memory_gib_per_node: float | None = Field(None, gt=0, description="Memory of a node.")
    ranks_per_node: int | None = Field(
        None, gt=0, description="Most ranks on a node; null: as many as it has GPUs."
    )
    max_nodes: int | None = Field(None, gt=0, description="Most nodes one job may have.")
    account: Word | None = Field(None, description="Who pays.")
    partition: Word | None = Field(None, description="Where jobs wait.")
    qos: Word | None = Field(None, description="Quality of service.")
    constraint: Word | None = Field(None, description="Features nodes must have.")
    reservation: Word | None = Field(None, description="A reservation.")
    exclusive: bool = Field(False, description="Whole nodes, whatever the ranks need of them.")
    sbatch_options: tuple[Word, ...] = Field((), description="More of them, as --switches=1.")
    srun_options: tuple[Line, ...] = Field((), description="More for the srun of the ranks.")
    environment: Annotated[dict[str, str], AfterValidator(_variables)] = Field(
        {}, description="Variables of the job, values as they are."
    )
    setup: tuple[Line, ...] = Field((), description="Lines of bash before the ranks, as they are.")
    container: Container | None = Field(None, description="Null: the ranks run on the node.")
    python: Line | None = Field(
        None, description="Python with dsv3 on the nodes; null: the one that submits."
    )
    template: Line = Field("slurm.sh.j2", description="A file in launchers/.")

    @property
    def most_ranks_per_node(self) -> int:
        """Ranks that fit on a node."""
        return self.ranks_per_node or self.gpus_per_node or 1


def launcher_directories(config_dir: Path | None) -> list[Path]:
    """Where templates and profiles are looked for, the user's first."""
    own = [] if config_dir is None else [config_dir / LAUNCHERS]
    return [*(path for path in own if path.is_dir()), shipped(LAUNCHERS)]


def load_profile(name: str, config_dir: Path | None = None) -> Profile:
    """The profile called `name`; raises ConfigError if there is none, or with all that is wrong."""
    found = [path / "profiles" / f"{name}.yaml" for path in launcher_directories(config_dir)]
    there = next((path for path in found if path.is_file()), None)
    if there is None:
        known = profile_names(config_dir)
        rule = "there is no such profile"
        remedy = did_you_mean(name, known) or f"there are {listed(known)}; yours go to {found[0]}"
        raise ConfigError(Problem(f"launcher.profile={name}", rule, remedy))
    data = _Loader(read_vetted(there)).get_single_data()
    if not isinstance(data, dict):
        raise ConfigError(Problem(str(there), "holds no keys", "see launchers/README.md"))
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        raise ConfigError([_problem(there, each) for each in error.errors()]) from None


def profile_names(config_dir: Path | None = None) -> list[str]:
    """Every profile there is."""
    paths = (path / "profiles" for path in launcher_directories(config_dir))
    return sorted({file.stem for path in paths for file in path.glob("*.yaml")})


def _problem(path: Path, error: Any) -> Problem:
    key = ".".join(map(str, error["loc"]))
    said = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        said, remedy = "is no key of a profile", did_you_mean(key, list(Profile.model_fields))
        return Problem(f"{path}: {key}", said, remedy or "see launchers/README.md")
    shown = "" if error["type"] == "missing" else f"={error['input']}"
    return Problem(f"{path}: {key}{shown}", said[:1].lower() + said[1:])
