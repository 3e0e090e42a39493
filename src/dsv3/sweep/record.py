"""`sweeps/<id>.json`: which runs a sweep consists of. The runs themselves are their directories."""

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dsv3.config.recipe import Recipe


class SweepRun(BaseModel):
    """One run of a sweep: an arm with a seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    arm: str
    seed: int
    overrides: tuple[str, ...]


class SweepRecord(BaseModel):
    """A sweep as it is on disk; `recipe` is None for one that the command line spelled out.

    `model` names the configured model; `run_root` is absolute.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    id: str
    name: str
    model: str
    run_root: Path
    created_at: str
    command: tuple[str, ...]
    recipe: Recipe | None
    baseline: str
    runs: tuple[SweepRun, ...]

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms, the baseline first, else as written."""
        return tuple(dict.fromkeys([self.baseline, *(run.arm for run in self.runs)]))


def sweep_id(name: str, recipe: Recipe | None, run_ids: list[str]) -> str:
    """`<name>-<hash of the recipe and the runs>`: the same sweep asked again is the same file."""
    content = [recipe.model_dump(mode="json") if recipe is not None else None, sorted(run_ids)]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f"{name}-{hashlib.sha256(canonical.encode()).hexdigest()[:10]}"
