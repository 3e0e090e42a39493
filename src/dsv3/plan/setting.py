"""What a plan assumes beside the configuration: the machine, the load, the price."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dsv3.config.hardware import Hardware
from dsv3.config.root import RunConfig
from dsv3.plan.imbalance import DEFAULT_MAX_VIOLATION

DEFAULT_HARDWARE = "h800"
"""The report's."""

NO_DIFFERENCE = {"seed", "run_root", "sweep_root", "run", "data", "tracking"}
"""What takes neither memory nor time that a plan counts."""

HEADROOM = 0.9
"""Share of a GPU's memory that a plan may fill: the CUDA context, NCCL's buffers and what the
allocator cannot use again are in no count. A choice of this project."""


@dataclass(frozen=True, eq=False)
class Setting:
    """`gpus` is the cluster's size, None: as many as a run has ranks."""

    name: str
    hardware: Hardware
    max_violation: float = DEFAULT_MAX_VIOLATION
    usd_per_gpu_hour: float | None = None
    gpus: int | None = None
    _known: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    def once(self, config: RunConfig, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `find` finds; the same for configurations that differ in seed and places alone."""
        key = config.model_dump_json(exclude=NO_DIFFERENCE)
        if key not in self._known:
            self._known[key] = find()
        return self._known[key]

    @property
    def price(self) -> float | None:
        """Dollars of a GPU-hour: the one given, or that of the profile; None if neither is."""
        given = self.usd_per_gpu_hour
        return self.hardware.usd_per_gpu_hour if given is None else given

    @property
    def usable_bytes(self) -> int:
        """Memory of a GPU that a plan may fill."""
        return int(self.hardware.memory_bytes * HEADROOM)
