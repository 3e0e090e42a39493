"""`checkpoint`: what is kept, how often, and how a run goes on."""

from typing import Literal

from dsv3.config.section import Section, field


class CheckpointConfig(Section):
    """Checkpoints are atomic, hashed and verified before they are read."""

    every_steps: int = field("Steps between checkpoints.", gt=0)
    keep: int = field("Verified checkpoints that are kept.", ge=2)
    resume: Literal["auto", "must", "never"] = field(
        "`auto`: go on where there is something; `must`: fail without; `never`: refuse if there is."
    )
