"""The arms of a command line: one configuration, or a sweep of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3.commands.lint import as_data
from dsv3.config.compose import Composed, compose, compose_sweep
from dsv3.config.root import RunConfig
from dsv3.plan.description import balance_record
from dsv3.runs.identity import run_id

BASE = "base"
"""Name of an arm that nothing sets apart."""


@dataclass(frozen=True)
class Arm:
    """One run to be: its configuration, and what sets it apart from its neighbours."""

    name: str
    config: RunConfig
    overrides: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """The entry of this run in `--dry-run --json`."""
        return {
            "id": run_id(self.config),
            "arm": self.name,
            "seed": self.config.seed,
            "overrides": list(self.overrides),
            "tokens": self.config.schedule.total_tokens,
            "balance": balance_record(self.config.balance),
            "mtp": self.config.mtp.model_dump(include={"num_nextn_predict_layers", "loss_coeff"}),
            "warnings": as_data(self.config),
        }


def arms_of(
    overrides: Sequence[str], *, multirun: bool, config_dir: Path | None
) -> tuple[Arm, ...]:
    """Compose one run, or every arm of a sweep; raises ConfigError with all problems of all."""
    if multirun:
        composed = compose_sweep(overrides, config_dir=config_dir)
    else:
        composed = [compose(overrides, config_dir=config_dir)]
    names = _names(composed)
    return tuple(
        Arm(name, each.config, each.overrides) for name, each in zip(names, composed, strict=True)
    )


def _names(composed: Sequence[Composed]) -> list[str]:
    """What differs between the arms, seeds left out: seeds are repeats of an arm, not arms."""
    shared = set(composed[0].overrides).intersection(*(each.overrides for each in composed))
    return [
        " ".join(o for o in each.overrides if o not in shared and not o.startswith("seed=")) or BASE
        for each in composed
    ]
