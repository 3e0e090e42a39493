"""The runs of a sweep: arms, each with its seeds."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dsv3.config.linter import lint
from dsv3.config.recipe import Recipe
from dsv3.config.root import RunConfig
from dsv3.plan.description import balance_record
from dsv3.plan.parameters import count_parameters
from dsv3.runs.identity import run_id

BASE = "base"
"""Name of an arm that nothing sets apart."""


@dataclass(frozen=True)
class Arm:
    """One run to be: an arm with its seed, and the words that compose it."""

    name: str
    config: RunConfig
    overrides: tuple[str, ...]

    @property
    def id(self) -> str:
        """Name of the run and of its directory."""
        return run_id(self.config)

    def record(self) -> dict[str, Any]:
        """The entry of this run in `--dry-run --json`; parameters without MTP."""
        counts = count_parameters(self.config.model)
        return {
            "id": self.id,
            "arm": self.name,
            "seed": self.config.seed,
            "overrides": list(self.overrides),
            "tokens": self.config.schedule.total_tokens,
            "parameters": {"total": counts.total, "active": counts.active},
            "balance": balance_record(self.config.balance),
            "mtp": self.config.mtp.model_dump(include={"num_nextn_predict_layers", "loss_coeff"}),
            "warnings": [asdict(finding) for finding in lint(self.config)],
        }


@dataclass(frozen=True)
class Sweep:
    """Everything one command trains; a single run is a sweep of one.

    `arms` has every run, the baseline's first, and the runs of an arm one after the other. `marks`
    are the words that mark each arm, by its name. `recipe` is None where the command line spells
    the sweep out; the baseline is its first arm then.
    """

    name: str
    recipe: Recipe | None
    baseline: str
    arms: tuple[Arm, ...]
    marks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def of_arm(self, name: str) -> tuple[Arm, ...]:
        """The runs of one arm, in the order of its seeds."""
        return tuple(arm for arm in self.arms if arm.name == name)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arms, in their order."""
        return tuple(dict.fromkeys(arm.name for arm in self.arms))
