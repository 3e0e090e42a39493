"""The script of a job array, from a template; every value in it is quoted or refused."""

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

import dsv3
from dsv3.errors import ConfigError, Problem, SavedForRequeueError
from dsv3.launch.slurm.profile import Profile, launcher_directories, unprintable
from dsv3.launch.slurm.shape import Shape
from dsv3.plan.quantities import plural

NOTHING_TO_DO = 100
"""What `begin` says of a run that is done, or that another job has."""
NO_MASTER = -1
"""What `end` is told instead of the ranks' exit code if there was no host to meet at."""
MAX_SCRIPT_BYTES = 1 << 20
_READ_IN_PATHS = "%\\"
_WORD = re.compile(r"[A-Za-z0-9_.,:;@%+=&|*()\[\]/~!-]*")


def render(
    shape: Shape,
    profile: Profile,
    *,
    names: Mapping[str, str],
    runs: int,
    submission: Path,
    directory: Path,
    config_dir: Path | None = None,
) -> str:
    """The script of one array.

    `names` has `profile`, `job` and `comment`; `submission` is the directory with the list of the
    runs, `directory` the one that relative paths of the configuration mean. Raises ConfigError if a
    value cannot be in a script, or if the template is wrong.
    """
    if any(character in str(submission) for character in _READ_IN_PATHS):
        rule = (
            "Slurm reads % and backslashes in the directory of a job's output: it would not start"
        )
        raise ConfigError(Problem(f"run_root: {submission}", rule, "choose another run_root="))
    last = runs - 1
    throttle = f"%{shape.parallel}" if shape.parallel and shape.parallel < runs else ""
    container = container_options(profile, directory)
    values: dict[str, Any] = {
        "version": dsv3.__version__,
        "profile_name": names["profile"],
        "job_name": names["job"],
        "comment": names["comment"],
        "runs": plural(runs, "run"),
        "ranks": plural(shape.ranks, "rank"),
        "array": f"0-{last}{throttle}",
        "shape": shape,
        "profile": profile,
        "submission": submission,
        "directory": directory,
        "container_options": container,
        "srun_options": [*container, *profile.srun_options],
        "python": profile.python or sys.executable,
        "nothing_to_do": NOTHING_TO_DO,
        "no_master": NO_MASTER,
        "please_requeue": SavedForRequeueError.exit_code,
    }
    setting = f"launcher.profile={names['profile']}: template={profile.template}"
    try:
        text = _environment(config_dir).get_template(profile.template).render(values)
    except jinja2.TemplateNotFound as error:
        places = ", ".join(map(str, launcher_directories(config_dir)))
        raise ConfigError(Problem(setting, f"there is no {error.name} in {places}")) from None
    except jinja2.TemplateError as error:
        raise ConfigError(Problem(setting, str(error), "see launchers/README.md")) from None
    if len(text.encode()) > MAX_SCRIPT_BYTES:
        raise ConfigError(Problem(setting, "the script is too long for sbatch"))
    return text


def quote(value: object) -> str:
    """A word of bash that means `value` and nothing else.

    Raises ConfigError for what a script cannot hold: control characters, bytes that are no text.
    """
    text = str(value)
    if unprintable(text):
        rule = "holds control characters or bytes that are no text, which a script cannot"
        raise ConfigError(Problem(ascii(text), rule, "give it another name"))
    return shlex.quote(text)


def option(value: object) -> str:
    """A word of an #SBATCH line as it is; raises ConfigError for one sbatch would read anew."""
    text = str(value)
    if not text or not _WORD.fullmatch(text):
        rule = "is no word for an #SBATCH line: letters, digits and .,:;@%+=&|*()[]/~!-"
        raise ConfigError(Problem(ascii(text), rule, "give it another name"))
    return text


def _option_part(value: object) -> str:
    return option(value) if str(value) else ""


def _environment(config_dir: Path | None) -> jinja2.Environment:
    environment = jinja2.Environment(  # noqa: S701 - bash, not HTML: filters quote
        loader=jinja2.FileSystemLoader(launcher_directories(config_dir)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"quote": quote, "option": option, "option_part": _option_part}
    return environment


def container_options(profile: Profile, directory: Path) -> list[str]:
    """What srun is told of the container: an option of its own, which sbatch would refuse."""
    container = profile.container
    if container is None:
        return []
    options = [f"--container-image={container.image}"]
    if container.mounts:
        options.append(f"--container-mounts={','.join(container.mounts)}")
    return [*options, f"--container-workdir={container.workdir or directory}"]
