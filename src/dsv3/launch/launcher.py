"""What a launcher is to the commands: one class for each `launcher.kind`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsv3.config.root import RunConfig
from dsv3.launch.scheduler import Scheduler


class Launcher(ABC):
    """Starts runs somewhere; `launch.local.launch` is what one on this machine does with them."""

    @abstractmethod
    def refuse(self, config: RunConfig) -> None:
        """Raise CapacityError or ConfigError if it cannot run this."""

    @abstractmethod
    def threads_per_rank(self, config: RunConfig) -> int:
        """CPU threads each rank of this run will have."""


@dataclass(frozen=True)
class Array:
    """Runs that ask a cluster for the same: by their numbers among those asked about."""

    runs: tuple[int, ...]
    script: Callable[[str, Path], str]
    """The text of its script, from its key and the directory it will be in."""


class ClusterLauncher(Launcher):
    """Hands runs in to a scheduler, where they go on without this process."""

    scheduler: Scheduler
    profile: str
    """Name of the cluster."""

    @abstractmethod
    def arrays(self, configs: Sequence[RunConfig], name: str) -> list[Array]:
        """The arrays that runs of these configurations make, under a name that people know."""
