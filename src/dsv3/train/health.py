"""What a step that is not sound says to its user: what, when, where, and how to go on."""

import math
from collections.abc import Callable

from dsv3.engine.engine import TrainingEngine
from dsv3.engine.health import RefusedStepError
from dsv3.errors import NumericHealthError, Problem
from dsv3.train.position import Position

LastGood = Callable[[], str | None]
"""Asked only by who has something to tell: it may wait for a save that is under way."""


def never_saved(error: NumericHealthError, step: int, last_good: str | None) -> NumericHealthError:
    """What a checkpoint said that was to be made of the state after `step`."""
    found = f"{error.problems[0]} after the update"
    return _stopped(step, f"{found}; nothing was saved, and {_good(last_good)}")


def refuse_non_finite_loss(loss: float, position: Position, last_good: LastGood) -> None:
    """Raise NumericHealthError if the loss of an evaluation is not finite."""
    if not math.isfinite(loss):
        raise _stopped(position.step, f"the validation loss is {loss}; {_good(last_good())}")


def refuse_different_replicas(engine: TrainingEngine, step: int, last_good: LastGood) -> None:
    """Raise NumericHealthError on all ranks if the weights of one are not the owners' masters."""
    found = engine.differing_weights()
    if found:
        rule = "; ".join(map(str, found))
        remedy = "check the memory of that machine, and ask for the run again"
        raise NumericHealthError(
            Problem(f"step {step}", f"{rule}; nothing was saved, and {_good(last_good())}", remedy)
        )


def stopped_by(
    refused: RefusedStepError, step: int, last_good: str | None, *, also: str = ""
) -> NumericHealthError:
    """The finding, with the step it would have been and the last good checkpoint."""
    found = f"{refused.why}{also}"
    return _stopped(step, f"{found}; the update was not applied, and {_good(last_good)}")


def _stopped(step: int, rule: str) -> NumericHealthError:
    remedy = "lower schedule.lr (a new run), or look at the data of this step"
    return NumericHealthError(Problem(f"step {step}", rule, remedy))


def _good(last_good: str | None) -> str:
    return f"the last good checkpoint is {last_good}" if last_good else "there is no checkpoint yet"
