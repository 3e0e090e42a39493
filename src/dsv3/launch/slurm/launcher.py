"""`launcher=slurm`: what a cluster's profile makes of configurations."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dsv3.config.root import RunConfig
from dsv3.launch.launcher import Array, ClusterLauncher
from dsv3.launch.scheduler import Scheduler
from dsv3.launch.slurm.commands import Slurm
from dsv3.launch.slurm.profile import Profile, load_profile
from dsv3.launch.slurm.script import render
from dsv3.launch.slurm.shape import Shape, refuse_too_small, shape_of
from dsv3.launch.slurm.states import COMMENT, job_name


@dataclass(frozen=True)
class SlurmLauncher(ClusterLauncher):
    """One cluster; `config_dir` holds the user's own templates."""

    profile: str
    cluster: Profile
    config_dir: Path | None
    scheduler: Scheduler

    @classmethod
    def of(cls, profile: str | None, config_dir: Path | None) -> "SlurmLauncher":
        """The cluster of a profile; raises ConfigError if there is none of this name."""
        assert profile is not None, "a rule asks for it"
        return cls(profile, load_profile(profile, config_dir), config_dir, Slurm())

    def refuse(self, config: RunConfig) -> None:
        """Raise ConfigError for a layout that does not fit its nodes, CapacityError for memory."""
        refuse_too_small(config, self.cluster)

    def threads_per_rank(self, config: RunConfig) -> int:
        """As configured, or the cores of a node shared out over its ranks."""
        return shape_of(config, self.cluster).cpus_per_rank

    def arrays(self, configs: Sequence[RunConfig], name: str) -> list[Array]:
        """One array for each shape of job, in the order of their first runs."""
        shapes: dict[Shape, list[int]] = {}
        for number, config in enumerate(configs):
            shapes.setdefault(shape_of(config, self.cluster), []).append(number)
        return [
            Array(tuple(numbers), partial(self._script, shape, len(numbers), name))
            for shape, numbers in shapes.items()
        ]

    def _script(self, shape: Shape, runs: int, name: str, key: str, submission: Path) -> str:
        return render(
            shape,
            self.cluster,
            names={
                "profile": self.profile,
                "job": job_name(name, key),
                "comment": f"{COMMENT}{key}",
            },
            runs=runs,
            submission=submission,
            directory=Path.cwd(),
            config_dir=self.config_dir,
        )
