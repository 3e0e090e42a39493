"""Steps without an update: left out, skipped, or undone by going back to a checkpoint."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dsv3.engine.health import RefusedStepError
from dsv3.train.health import stopped_by
from dsv3.train.load import take_load

if TYPE_CHECKING:
    from dsv3.train.loop import Trainer
    from dsv3.train.reporter import Record


def refuse(trainer: "Trainer", refused: RefusedStepError) -> "Record | None":
    """Act on a step of which nothing is left but what the routers counted.

    Returns the figures of its line if it is skipped, None if the run was rolled back. Raises
    NumericHealthError if it is to stop.
    """
    take_load(trainer.layers)  # this rank's counters back to zero
    # What an earlier step did to the weights, a save under way knows.
    trainer.checkpoints.collect(trainer.reporter)
    step = trainer.position.step + 1
    match trainer.policies.action(refused):
        case "skip" if trainer.policies.count_skip():
            trainer.reporter.event("step_skipped", step=step, why=refused.why, **refused.details)
            trainer.reporter.note(f"step {step}: {refused.why}; skipped")
            return without_update(trainer, refused)
        case "skip":
            also = f", after health.largest_skips={trainer.config.health.largest_skips} in a row"
        case "rollback":
            if _roll_back(trainer, refused):
                return None
            largest = trainer.config.health.largest_rollbacks
            also = f", after health.largest_rollbacks={largest} to the same checkpoint"
        case _:
            also = ""
    raise stopped_by(refused, step, trainer.checkpoints.newest(), also=also) from refused


def without_update(trainer: "Trainer", refused: RefusedStepError | None = None) -> "Record":
    """The figures of the coming step without its update: NaN for those that are not known."""
    trainer.alarms.skip(trainer.position.step + 1)
    losses: Mapping[str, list[float]] = {} if refused is None else refused.losses
    unknown = [math.nan]
    return {
        "loss": losses.get("lm", unknown)[0],
        "objective": next(iter(losses.values()), unknown)[0],
        "balance_loss": losses.get("balance", unknown)[0],
        "mtp_loss": losses.get("mtp", unknown * trainer.config.mtp.num_nextn_predict_layers),
        "grad_norm": math.nan if refused is None else refused.grad_norm,
        "skipped": True,
    }


def _roll_back(trainer: "Trainer", refused: RefusedStepError) -> bool:
    """Load the newest good checkpoint; whether the run may go on from there."""
    step = trainer.position.step + 1
    with trainer.heartbeat.phase("rolling back", trainer.config.run.storage_timeout):
        resumed = trainer.checkpoints.roll_back(trainer.engine)
    assert resumed.state is not None, "there is a checkpoint before the first step"
    to_step, state = resumed.position.step, resumed.state["policies"]
    if not trainer.policies.roll_back(state, step=step, to_step=to_step):
        return False
    trainer.restore(resumed)
    trainer.reporter.roll_back(to_step)
    trainer.reporter.event(
        "rolled_back", step=step, to_step=to_step, why=refused.why, **refused.details
    )
    trainer.reporter.note(f"step {step}: {refused.why}; back to step {to_step}")
    return True
