"""`tracking`: a mirror of metrics.jsonl for people who watch dashboards."""

from typing import Annotated, Literal

from pydantic import Field

from dsv3.config.section import Section, field


class TrackingConfig(Section):
    """The files of the run are the truth; a mirror that fails never stops or slows it."""

    backend: Literal["none", "wandb", "tensorboard"] = field("Which mirror, if any.")
    project: str = field("wandb: the project the run is filed under.", min_length=1)
    group: str | None = field(
        "Runs that belong together; null: the sweep, or the model's name.", min_length=1
    )
    name: str | None = field(
        "What the run is called; null: arm and seed in a sweep, or the run's id.", min_length=1
    )
    tags: tuple[Annotated[str, Field(min_length=1)], ...] = field(
        "Words to filter by; []: recipe, arm and seed in a sweep, or model and balance."
    )
    mode: Literal["auto", "online", "offline"] = field(
        "wandb: `auto` is online where a key and the server are, else offline, to be uploaded with"
        " `wandb sync`; WANDB_MODE decides if it is set."
    )
    every_steps: int = field("Steps between mirrored lines.", gt=0)
