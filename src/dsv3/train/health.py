"""What a non-finite loss or norm says to its user: what, when, where, and how to go on."""

from dsv3.engine.health import NonFiniteError
from dsv3.errors import NumericHealthError, Problem


def stopped_by(error: NonFiniteError, step: int, last_good: str | None) -> NumericHealthError:
    """The engine's finding, with the step it would have been and the last good checkpoint."""
    origin = "layer" if error.kind == "loss" else "gradients of"
    where = f", first in {origin} {', '.join(error.names)}" if error.names else ""
    good = f"the last good checkpoint is {last_good}" if last_good else "there is no checkpoint yet"
    return NumericHealthError(
        Problem(
            f"step {step}",
            f"the {error.kind} is {error.value}{where}; the update was not applied, and {good}",
            "lower schedule.lr (a new run), or look at the data of this step",
        )
    )
