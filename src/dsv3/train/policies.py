"""What a run does about steps that are not sound, and what it remembers of them."""

from collections.abc import Mapping
from typing import Any

from dsv3.config.health import HealthConfig
from dsv3.engine.engine import StepResult
from dsv3.engine.health import NonFiniteError, RefusedStepError
from dsv3.train.spikes import Spike, Spikes


class SpikeError(RefusedStepError):
    """A step refused for a finite loss or gradient norm far above those before."""

    def __init__(self, spikes: list[Spike], result: StepResult) -> None:
        why = " and ".join(map(str, spikes))
        first = spikes[0]
        super().__init__(why, first._asdict(), losses=result.losses, grad_norm=result.grad_norm)


class Policies:
    """`health.on_non_finite` and `health.on_spike`, and the counts that end them.

    The same on every rank, since it follows from figures that are. The batches of
    `left_out_steps` are passed over: without that, a run that was rolled back would meet the same
    one for ever.
    """

    def __init__(self, health: HealthConfig, state: Mapping[str, Any] | None = None) -> None:
        """Start, or go on from what `state` returned."""
        self._health = health
        self._rollbacks = (-1, 0)  # to which step, how often in a row
        self._spikes = Spikes(health)
        self._skips = 0  # in a row
        self.left_out_steps: set[int] = set()
        if state is not None:
            self._restore(state)

    def state(self) -> dict[str, Any]:
        """JSON for the checkpoint.

        Rollbacks are not counted across checkpoints: a killed run goes back to the last one, and
        makes the same rollbacks again.
        """
        return {
            "spikes": self._spikes.state(),
            "left_out_steps": sorted(self.left_out_steps),
            "skips": self._skips,
        }

    def judge(self, result: StepResult) -> list[Spike]:
        """Take the figures of a step before its update; the spikes that are only to be reported.

        Raises SpikeError if the policy refuses the step, which then was never here.
        """
        figures = {"loss": result.losses["lm"][0], "grad_norm": result.grad_norm}
        spikes = self._spikes.find(figures)
        if spikes and self._health.on_spike != "report":
            raise SpikeError(spikes, result)
        self._spikes.accept(figures)
        self._skips = 0
        return spikes

    def action(self, refused: RefusedStepError) -> str:
        """`stop`, `skip` or `rollback`."""
        non_finite = isinstance(refused, NonFiniteError)
        return self._health.on_non_finite if non_finite else self._health.on_spike

    def count_skip(self) -> bool:
        """Count a refused step; whether it may be skipped."""
        self._skips += 1
        return self._skips <= self._health.largest_skips

    def roll_back(self, state: Mapping[str, Any], *, step: int, to_step: int) -> bool:
        """Go back to the state of a checkpoint, and leave out `step`; whether that is allowed.

        What was left out since the checkpoint stays left out.
        """
        before, rollbacks = self._rollbacks
        rollbacks = rollbacks + 1 if before == to_step else 1
        left_out = self.left_out_steps | {step}
        self._restore(state)
        self.left_out_steps |= left_out
        self._rollbacks = (to_step, rollbacks)
        return rollbacks <= self._health.largest_rollbacks

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._spikes = Spikes(self._health, state["spikes"])
        self._skips = state["skips"]
        self.left_out_steps = set(state["left_out_steps"])
