"""The training loop: one optimizer step on one screen; files, mirrors and saving hang off it."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from dsv3.config.root import RunConfig
from dsv3.data.loader import read_batch
from dsv3.data.samples import TrainingSamples, ValidationSample
from dsv3.engine.engine import TrainingEngine
from dsv3.engine.health import NonFiniteError
from dsv3.model.transformer import Transformer
from dsv3.train.balancing import count_batch, keep_for_next_step, take_load, update_biases
from dsv3.train.checkpointing import Checkpoints
from dsv3.train.evaluation import Evaluation, evaluate
from dsv3.train.health import refuse_non_finite_loss, stopped_by
from dsv3.train.position import Position
from dsv3.train.reporter import Record, Reporter
from dsv3.train.signals import StopRequest


@dataclass
class Trainer:
    """Everything a rank trains with."""

    config: RunConfig
    device: torch.device
    model: Transformer
    engine: TrainingEngine
    samples: TrainingSamples
    validation: list[ValidationSample]
    checkpoints: Checkpoints
    reporter: Reporter
    stop: StopRequest
    position: Position

    @property
    def done(self) -> bool:
        """Whether the last step, the one that reaches total_tokens, has been made."""
        return self.position.tokens >= self.config.schedule.total_tokens


def train_to_end(trainer: Trainer) -> Evaluation:
    """Train from the current position to the end; returns the final evaluation.

    Raises NumericHealthError before a non-finite update, SavedForRequeueError or
    InterruptedError_ after a stop signal, with everything saved.
    """
    every_steps = trainer.config.evaluation.every_steps
    while not trainer.done:
        _stop_if_asked(trainer)
        trainer.reporter.step(train_step(trainer))
        step = trainer.position.step
        if every_steps is not None and step % every_steps == 0 and not trainer.done:
            evaluate_now(trainer)
        if step % trainer.config.checkpoint.every_steps == 0 or trainer.done:
            trainer.checkpoints.save(trainer.engine, trainer.position, trainer.reporter)
    _stop_if_asked(trainer)
    return evaluate_now(trainer)


def train_step(trainer: Trainer) -> Record:
    """One optimizer step over the global batch; returns its line for metrics.jsonl."""
    began_s = time.monotonic()
    schedule, layers = trainer.config.schedule, trainer.model.moe_layers()
    # The step that brings the run to t1 tokens uses every curve at t1: step 1 of a warm-up moves.
    after = trainer.position.after_step(schedule)
    lr = schedule.lr_at(after.tokens)
    mtp_loss_coeff = trainer.config.mtp.loss_coeff * schedule.mtp_loss_coeff_at(after.tokens)
    micro_batches = _micro_batches(trainer, mtp_loss_coeff)
    balance = trainer.config.balance
    count_batch(trainer.model, layers, micro_batches, balance)
    try:
        result = trainer.engine.train_step(micro_batches, lr=lr)
    except NonFiniteError as error:
        raise stopped_by(error, after.step, trainer.checkpoints.newest) from error
    load = take_load(layers)
    speed = schedule.bias_update_speed_at(after.tokens)
    update_biases(layers, load, balance, speed)
    keep_for_next_step(layers, load, balance)
    trainer.position = after
    max_violation = load.max_violation()
    return {
        "step": after.step,
        "tokens": after.tokens,
        "loss": result.losses["lm"][0],
        "objective": result.loss,
        "balance_loss": result.losses["balance"][0],
        "mtp_loss": result.losses["mtp"],
        "lr": lr,
        "grad_norm": result.grad_norm,
        "tokens_per_second": schedule.tokens_per_step / (time.monotonic() - began_s),
        "max_violation": sum(max_violation.values()) / max(1, len(max_violation)),
        "max_violation_per_layer": max_violation,
        "dead_experts_per_layer": load.dead_experts(),
    }


def evaluate_now(trainer: Trainer) -> Evaluation:
    """Evaluate at the current position and report it."""
    batch_size = trainer.config.schedule.micro_batch_size
    with trainer.engine.evaluating():
        evaluation = evaluate(trainer.model, trainer.validation, batch_size, trainer.device)
    refuse_non_finite_loss(evaluation.loss, trainer.position, trainer.checkpoints.newest)
    line = {"kind": "eval", "step": trainer.position.step, "tokens": trainer.position.tokens}
    trainer.reporter.evaluation(line | evaluation.record())
    return evaluation


def _micro_batches(trainer: Trainer, mtp_loss_coeff: float) -> list[tuple[Tensor, ...]]:
    """The next global batch in micro batches of this rank: input ids, labels, lambda."""
    coeff = torch.tensor(mtp_loss_coeff, device=trainer.device)
    size = trainer.config.schedule.micro_batch_size
    first = trainer.position.samples
    batches: list[tuple[Tensor, ...]] = []
    for index in range(trainer.config.gradient_accumulation_steps):
        ids_BS, labels_BS = read_batch(trainer.samples, first + index * size, size)
        batches.append((ids_BS.to(trainer.device), labels_BS.to(trainer.device), coeff))
    return batches


def _stop_if_asked(trainer: Trainer) -> None:
    if not trainer.stop.requested:
        return
    step = trainer.position.step
    if step > 0:
        trainer.checkpoints.save(trainer.engine, trainer.position, trainer.reporter)
    error = trainer.stop.as_error(step)
    trainer.reporter.event("stopped", step=step, exit_code=error.exit_code)
    raise error
