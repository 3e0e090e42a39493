"""What a non-finite loss or norm says to its user: what, when, where, and how to go on."""

import math

from dsv3.engine.health import NonFiniteError
from dsv3.errors import NumericHealthError, Problem
from dsv3.train.position import Position


def never_saved(error: NumericHealthError, step: int, last_good: str | None) -> NumericHealthError:
    """What a checkpoint said that was to be made of the state after `step`."""
    found = f"{error.problems[0]} after the update"
    return _stopped(step, f"{found}; nothing was saved, and {_good(last_good)}")


def refuse_non_finite_loss(loss: float, position: Position, last_good: str | None) -> None:
    """Raise NumericHealthError if the loss of an evaluation is not finite."""
    if not math.isfinite(loss):
        raise _stopped(position.step, f"the validation loss is {loss}; {_good(last_good)}")


def stopped_by(error: NonFiniteError, step: int, last_good: str | None) -> NumericHealthError:
    """The engine's finding, with the step it would have been and the last good checkpoint."""
    origin = "layer" if error.kind == "loss" else "gradients of"
    where = f", first in {origin} {', '.join(error.names)}" if error.names else ""
    found = f"the {error.kind} is {error.value}{where}"
    return _stopped(step, f"{found}; the update was not applied, and {_good(last_good)}")


def _stopped(step: int, rule: str) -> NumericHealthError:
    remedy = "lower schedule.lr (a new run), or look at the data of this step"
    return NumericHealthError(Problem(f"step {step}", rule, remedy))


def _good(last_good: str | None) -> str:
    return f"the last good checkpoint is {last_good}" if last_good else "there is no checkpoint yet"
