"""The training loop: one optimizer step on one screen, the rest hangs on hooks."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import torch

from dsv3.config.root import RunConfig
from dsv3.data.loader import TrainingLoader, ValidationSample
from dsv3.engine.engine import NonFiniteError, TrainingEngine
from dsv3.errors import InterruptedError_, SavedForRequeueError
from dsv3.model.transformer import Transformer
from dsv3.train.balancing import take_load, update_biases
from dsv3.train.checkpointing import Checkpoints
from dsv3.train.evaluation import Evaluation, evaluate
from dsv3.train.health import first_non_finite_module, non_finite_error
from dsv3.train.hooks import Hooks, Record
from dsv3.train.position import Position


@dataclass
class Trainer:
    """Everything a rank trains with, put together by build.py."""

    config: RunConfig
    device: torch.device
    model: Transformer
    engine: TrainingEngine
    loader: TrainingLoader
    validation: list[ValidationSample]
    checkpoints: Checkpoints
    hooks: Hooks
    position: Position
    stop_exit_code: Callable[[], int | None]
    evaluated_at: int = -1

    @property
    def done(self) -> bool:
        """Whether the last step, the one that reaches total_tokens, has been made."""
        return self.position.tokens >= self.config.schedule.total_tokens


def run(trainer: Trainer) -> Evaluation:
    """Train from the current position to the end; returns the final evaluation.

    Raises NumericHealthError before a non-finite update, SavedForRequeueError or
    InterruptedError_ after a signal, with everything saved.
    """
    checkpoint, evaluation = trainer.config.checkpoint, trainer.config.evaluation
    last: Evaluation | None = None
    while not trainer.done:
        if (exit_code := trainer.stop_exit_code()) is not None:
            _stop(trainer, exit_code)
        trainer.hooks.on_record(train_step(trainer))
        step = trainer.position.step
        if evaluation.every_steps is not None and step % evaluation.every_steps == 0:
            last = _evaluate(trainer)
        if step % checkpoint.every_steps == 0 or trainer.done:
            trainer.checkpoints.save(trainer.engine, trainer.position)
    if last is None or trainer.evaluated_at != trainer.position.step:
        last = _evaluate(trainer)
    return last


def train_step(trainer: Trainer) -> Record:
    """One optimizer step over the global batch; returns its line for metrics.jsonl."""
    begin = time.monotonic()
    schedule, layers = trainer.config.schedule, trainer.model.moe_layers()
    # The step that brings the run to t1 tokens uses every curve at t1: step 1 of a warm-up moves.
    after = trainer.position.after_step(schedule)
    micro_batches = trainer.loader.micro_batches(trainer.position.samples)
    lr = schedule.lr_at(after.tokens)
    try:
        result = trainer.engine.train_step(micro_batches, lr=lr)
    except NonFiniteError as error:
        where = first_non_finite_module(trainer.model, micro_batches) or error.where
        last_good = trainer.checkpoints.newest
        raise non_finite_error(error.what, error.value, after.step, where, last_good) from error
    load = take_load(layers)
    update_biases(
        layers, load, trainer.config.balance, schedule.bias_update_speed_at(after.tokens)
    )
    trainer.position = after
    violation = load.max_violation()
    return {
        "step": after.step,
        "tokens": after.tokens,
        "loss": result.loss,
        "lr": lr,
        "grad_norm": result.grad_norm,
        "max_violation": sum(violation.values()) / max(1, len(violation)),
        "max_violation_per_layer": violation,
        "dead_experts_per_layer": load.dead_experts(),
        "tokens_per_second": schedule.tokens_per_step / (time.monotonic() - begin),
    }


def _evaluate(trainer: Trainer) -> Evaluation:
    batch = trainer.config.schedule.micro_batch_size
    evaluation = evaluate(trainer.model, trainer.validation, batch, trainer.device)
    trainer.evaluated_at = trainer.position.step
    line = {"kind": "eval", "step": trainer.position.step, "tokens": trainer.position.tokens}
    trainer.hooks.on_record(line | evaluation.record())
    return evaluation


def _stop(trainer: Trainer, exit_code: int) -> NoReturn:
    if trainer.position.step > 0:
        trainer.checkpoints.save(trainer.engine, trainer.position)
    trainer.hooks.on_event("stopped", step=trainer.position.step, exit_code=exit_code)
    error = InterruptedError_ if exit_code == InterruptedError_.exit_code else SavedForRequeueError
    raise error(
        f"stopped by a signal at step {trainer.position.step}, everything is saved;"
        " the same command goes on"
    )
