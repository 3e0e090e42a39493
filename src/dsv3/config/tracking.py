"""`tracking`: a mirror of metrics.jsonl for people who watch dashboards."""

from typing import Literal

from dsv3.config.section import Section, field


class TrackingConfig(Section):
    """The files of the run are the truth; a mirror that fails never stops or slows it."""

    backend: Literal["none", "wandb", "tensorboard"] = field("Which mirror, if any.")
    project: str = field("wandb: the project the run is filed under.", min_length=1)
    every_steps: int = field("Steps between mirrored lines.", gt=0)
