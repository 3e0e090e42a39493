"""What a report is made of: a sweep and what its runs left, read once, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dsv3.config.root import RunConfig
from dsv3.sweep.record import SweepRecord


@dataclass(frozen=True)
class Curve:
    """A figure over training: one value for each step that has it."""

    steps: NDArray[np.int64]
    tokens: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class ExpertLoad:
    """Load over the even load of the last evaluation: `relative_DLE` [domains, layers, experts].

    Layers are named by their number in the model.
    """

    domains: tuple[str, ...]
    layers: tuple[str, ...]
    relative_DLE: NDArray[np.float64]


Ending = Literal["finished", "stopped", "failed", "lost", "running"]


@dataclass(frozen=True)
class Spell:
    """When an attempt trained: from its `started` event to what ended it.

    `stopped` has saved, `failed` said why, `lost` died or was killed: its end is its last sign of
    life, as that of one that is `running`.
    """

    attempt: int
    begin: datetime
    end: datetime
    ending: Ending


@dataclass(frozen=True)
class StudyRun:
    """One run of a study. `result` and `expert_load` are None until it is done.

    `status` is `dsv3.runs.directory.Status`, or `missing` (no directory) or `damaged` (`problems`
    says which file); `failure` what FAILED says; `evaluations` the evaluation lines; `start` the
    hashes its ranks wrote of initial weights and data order. `attempts` has the provenance of every
    start of the ranks, `provenance` that of the first. `cost_s` is the wall time of the steps that
    count, on `devices` of `device_kind`: "GPU" or "CPU core"; `spells` say when its attempts ran.
    What could not be read and is not needed for the rest is None or empty, and in `problems`.
    """

    id: str
    arm: str
    seed: int
    directory: Path
    status: str
    config: RunConfig | None
    result: Mapping[str, Any] | None
    failure: Mapping[str, Any] | None
    curves: Mapping[str, Curve]
    evaluations: tuple[Mapping[str, Any], ...]
    expert_load: ExpertLoad | None
    start: Mapping[str, str] | None
    provenance: Mapping[str, Any]
    cost_s: float | None
    devices: int
    device_kind: str
    attempts: tuple[Mapping[str, Any], ...] = ()
    problems: tuple[str, ...] = ()
    spells: tuple[Spell, ...] = ()

    @property
    def done(self) -> bool:
        """Whether it has its result."""
        return self.result is not None


@dataclass(frozen=True)
class Study:
    """A sweep with its runs, in the order of the record."""

    record: SweepRecord
    runs: tuple[StudyRun, ...]

    def of_arm(self, arm: str) -> tuple[StudyRun, ...]:
        """The runs of one arm, by seed."""
        return tuple(sorted((r for r in self.runs if r.arm == arm), key=lambda run: run.seed))
