"""What a mirror and what it writes to agree on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class MirroredRun:
    """What a backend has to know of the run; `config` is the configuration and nothing else."""

    backend: str
    id: str
    directory: str
    project: str
    group: str
    name: str
    tags: Sequence[str]
    mode: str
    first_step: int
    config: Mapping[str, Any]


class Backend(Protocol):
    """What a mirror writes to."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of one step."""

    def roll_back(self, to_step: int) -> None:
        """What was written of the steps after `to_step` will be done again."""

    def close(self) -> None:
        """Write what is still buffered."""
