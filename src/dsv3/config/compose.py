"""From overrides to a validated RunConfig; the only importer of Hydra and OmegaConf."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from dsv3.config.locations import shipped
from dsv3.config.root import RunConfig


@dataclass(frozen=True)
class Composed:
    """A validated configuration and the overrides, in canonical spelling, that made it."""

    config: RunConfig
    overrides: tuple[str, ...]


def compose(overrides: Sequence[str] = (), *, config_dir: Path | None = None) -> Composed:
    """Compose and validate one run."""
    with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
        composed = hydra_compose("config", overrides=list(overrides))
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    return Composed(RunConfig.model_validate(plain), tuple(overrides))
