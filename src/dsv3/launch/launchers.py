"""The launchers there are, by `launcher.kind`: whoever adds one names it here."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dsv3.config.root import RunConfig
from dsv3.errors import ConfigError, Problem
from dsv3.launch.launcher import Launcher
from dsv3.launch.local import LocalLauncher
from dsv3.launch.scheduler import Scheduler
from dsv3.launch.slurm.commands import Slurm
from dsv3.launch.slurm.launcher import SlurmLauncher

LAUNCHERS: Mapping[str, Callable[[str | None, Path | None], Launcher]] = {
    "local": lambda _profile, _config_dir: LocalLauncher(),
    "slurm": SlurmLauncher.of,
}
"""Makes a launcher from its profile and the user's own directory."""
SCHEDULERS: Mapping[str, Callable[[], Scheduler]] = {"slurm": Slurm}
"""Of launchers that hand in: for runs that were handed in before."""


def launcher_of(configs: Sequence[RunConfig], config_dir: Path | None = None) -> Launcher:
    """The launcher that all runs of a command name; raises ConfigError if they name several."""
    asked = {(config.launcher.kind, config.launcher.profile) for config in configs}
    if len(asked) > 1:
        said = ", ".join(sorted(f"{kind} ({profile})" for kind, profile in asked))
        rule = f"the runs of a command have one launcher, these name {said}"
        raise ConfigError(Problem("launcher", rule, "ask for them one after the other"))
    ((kind, profile),) = asked
    return LAUNCHERS[kind](profile, config_dir)
