"""How far a run has come: everything the schedules and the loader need to go on."""

from dataclasses import asdict, dataclass
from typing import Self

from dsv3.config.schedule import ScheduleConfig


@dataclass(frozen=True)
class Position:
    """Completed optimizer steps, and the tokens and samples they consumed, over all ranks."""

    step: int = 0
    tokens: int = 0
    samples: int = 0

    def after_step(self, schedule: ScheduleConfig) -> Self:
        """The position once the next optimizer step is done."""
        batch_size = schedule.batch_size_at(self.tokens)
        return type(self)(
            self.step + 1,
            self.tokens + batch_size * schedule.sequence_length,
            self.samples + batch_size,
        )

    def state(self) -> dict[str, int]:
        """JSON for the checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, int]) -> Self:
        """The inverse of `state`."""
        return cls(**state)
