"""The training loop: one optimizer step on one screen; files, mirrors and saving hang off it."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsv3.config.root import RunConfig
from dsv3.data.loader import read_batch
from dsv3.data.samples import TrainingSamples, ValidationSample
from dsv3.engine.engine import StepResult, TrainingEngine
from dsv3.engine.health import RefusedStepError
from dsv3.model.transformer import Transformer
from dsv3.parallel.spans import span
from dsv3.plan.scheduled import in_force
from dsv3.runs.directory import RunDirectory
from dsv3.train.alarms import Alarms
from dsv3.train.balancing import count_batch, keep_for_next_step, update_biases
from dsv3.train.checkpointing import Checkpoints, Resumed
from dsv3.train.digests import Digests
from dsv3.train.evaluation import Evaluation, evaluate
from dsv3.train.evaluation_files import save_evaluation
from dsv3.train.fence import Fence
from dsv3.train.health import refuse_different_replicas, refuse_non_finite_loss
from dsv3.train.heartbeat import Heartbeat
from dsv3.train.layers import ModelLayers
from dsv3.train.load import load_record, take_load
from dsv3.train.policies import Policies
from dsv3.train.position import Position
from dsv3.train.proof import Proof
from dsv3.train.ranges import ranges_record
from dsv3.train.ranks import Ranks
from dsv3.train.refusal import refuse, without_update
from dsv3.train.reporter import Record, Reports
from dsv3.train.shares import micro_batch_ranges
from dsv3.train.signals import StopRequest, stopped_by_signal
from dsv3.train.stages import PipelinedModel
from dsv3.train.timeline import Recorder


@dataclass
class Trainer:
    """Everything a rank trains with."""

    run: RunDirectory
    ranks: Ranks
    heartbeat: Heartbeat
    config: RunConfig
    device: torch.device
    model: Transformer | PipelinedModel  # for passes without a gradient
    layers: ModelLayers
    engine: TrainingEngine
    samples: TrainingSamples
    validation: list[ValidationSample]
    checkpoints: Checkpoints
    reporter: Reports
    stop: StopRequest
    position: Position
    alarms: Alarms
    digests: Digests
    policies: Policies
    recorder: Recorder
    proof: Proof
    fence: Fence

    @property
    def done(self) -> bool:
        """Whether the last step, the one that reaches total_tokens, has been made."""
        return self.position.tokens >= self.config.schedule.total_tokens

    def state(self) -> dict[str, Any]:
        """What goes on across checkpoints beside position, tensors and random streams: JSON."""
        return {"alarms": self.alarms.state(), "policies": self.policies.state()}

    def restore(self, resumed: Resumed) -> None:
        """Go on from a checkpoint that was just loaded; `policies` remembers more than that."""
        assert resumed.state is not None
        self.position = resumed.position
        self.alarms = Alarms(self.config.health, self.layers, resumed.state["alarms"])


def train_to_end(trainer: Trainer) -> Evaluation:
    """Train from the current position to the end; returns the final evaluation.

    Raises NumericHealthError where `health` has it stop, SavedForRequeueError or
    InterruptedError_ after a stop signal, with everything saved.
    """
    every_steps = trainer.config.evaluation.every_steps
    if trainer.config.health.rolls_back and trainer.position.step == 0:
        _save(trainer)  # where a bad step before the first checkpoint goes back to
    while not trainer.done:
        _between_steps(trainer)
        line = train_step(trainer)
        trainer.reporter.step(line)
        trainer.digests.step(line, trainer.position, trainer.state)
        step = trainer.position.step
        if every_steps is not None and step % every_steps == 0 and not trainer.done:
            evaluate_now(trainer)
        if step % trainer.config.checkpoint.every_steps == 0 and not trainer.done:
            _save(trainer)
    _save(trainer)
    _between_steps(trainer)
    evaluation = evaluate_now(trainer)
    trainer.digests.final(trainer.position, trainer.state)
    _save(trainer, wait=True)
    return evaluation


def train_step(trainer: Trainer) -> Record:
    """One step over the global batch; returns its line for metrics.jsonl.

    Without an update if the step is refused and `health` says to skip it, or if it is one to leave
    out. If it says to roll back, the step is the first one after the checkpoint.
    """
    began_s = time.monotonic()
    # The step that brings the run to t1 tokens uses every curve at t1: step 1 of a warm-up moves.
    before, after = trainer.position, trainer.position.after_step(trainer.config.schedule)
    values = in_force(trainer.config, tokens_before=before.tokens, tokens_after=after.tokens)
    try:
        left_out = after.step in trainer.policies.left_out_steps
        if left_out:
            figures = without_update(trainer)
        else:
            with trainer.recorder.step(after.step), trainer.proof.step(after.step):
                figures = _update(trainer, after.step, values)
    except RefusedStepError as refused:
        remaining = refuse(trainer, refused)
        if remaining is None:
            return train_step(trainer)
        figures = remaining
    trainer.position = after
    tokens_per_second = (after.tokens - before.tokens) / (time.monotonic() - began_s)
    line = {"step": after.step, "tokens": after.tokens, "tokens_per_second": tokens_per_second}
    return line | {"checkpoint_stall_s": trainer.checkpoints.take_stall()} | values | figures


def _update(trainer: Trainer, step: int, values: dict[str, float]) -> Record:
    """Train on the global batch; the figures of it. Raises RefusedStepError, and nothing was."""
    layers, balance = trainer.layers, trainer.config.balance
    micro_batches = _micro_batches(trainer, values.get("mtp_loss_coeff", 0.0))
    with span("other", "count"):
        count_batch(trainer.model, layers, micro_batches, balance, trainer.ranks)
    result = trainer.engine.train_step(
        micro_batches,
        lr=values["lr"],
        on_micro_batch=trainer.heartbeat.beat,
        before_update=lambda result: _before_update(trainer, step, result),
    )
    load = take_load(layers, trainer.ranks)
    trainer.digests.take(micro_batches, load)
    update_biases(layers, load, balance, gamma=values["bias_update_speed"])
    keep_for_next_step(layers, load, balance)
    of_load = load_record(load, layers)
    ranges = trainer.proof.ranges(step)
    alarms = trainer.alarms
    for alarm in (*alarms.after_step(step, load), *alarms.after_ranges(step, ranges)):
        trainer.reporter.alarm(alarm)
    return {
        "loss": result.losses["lm"][0],
        "objective": result.loss,
        "balance_loss": result.losses["balance"][0],
        "mtp_loss": result.losses["mtp"],
        "grad_norm": result.grad_norm,
        **of_load,
        **ranges_record(ranges),
    }


def _before_update(trainer: Trainer, step: int, result: StepResult) -> None:
    """Check replicas if it is time to, before the update makes them anew; judge the figures.

    In the first step of an attempt the formats of all products too.
    """
    every_steps = trainer.config.health.replica_check_steps
    if every_steps is not None and step % every_steps == 0:
        refuse_different_replicas(trainer.engine, step, trainer.checkpoints.newest)
    proved = trainer.proof.after_passes(step)
    if proved is not None:
        trainer.reporter.note(proved)
    for spike in trainer.policies.judge(result):
        trainer.reporter.event("spike", step=step, **spike._asdict())
        trainer.reporter.note(f"step {step}: spike: {spike}")


def evaluate_now(trainer: Trainer) -> Evaluation:
    """Evaluate at the current position, write its files and report it."""
    config, device = trainer.config, trainer.device
    batch_size, depth = config.schedule.micro_batch_size, config.mtp.num_nextn_predict_layers
    with trainer.engine.evaluating(), trainer.proof.evaluation() as recorded:

        def on_batch(_batch: int, _loss: float) -> None:
            recorded()  # the first batch shows what all do
            trainer.heartbeat.beat()

        evaluation = evaluate(
            trainer.model,
            trainer.validation,
            batch_size,
            device,
            layers=trainer.layers,
            ranks=trainer.ranks,
            mtp_depth=depth,
            on_batch=on_batch,
        )
    trainer.proof.after_evaluation(trainer.position.step)
    refuse_non_finite_loss(evaluation.loss, trainer.position, trainer.checkpoints.newest)
    if trainer.ranks.is_first:
        save_evaluation(trainer.run, config, device, trainer.position, evaluation, by_training=True)
    line = {"kind": "eval", "step": trainer.position.step, "tokens": trainer.position.tokens}
    trainer.reporter.evaluation(line | evaluation.record())
    return evaluation


def _micro_batches(trainer: Trainer, mtp_loss_coeff: float) -> list[tuple[Tensor, ...]]:
    """The next global batch in micro batches of this rank: input ids, labels, lambda."""
    coeff = torch.tensor(mtp_loss_coeff, device=trainer.device)
    place = trainer.ranks.place
    batches: list[tuple[Tensor, ...]] = []
    for samples in micro_batch_ranges(trainer.config, place, trainer.position):
        ids_BS, labels_BS = read_batch(trainer.samples, samples.start, len(samples))
        batches.append((ids_BS.to(trainer.device), labels_BS.to(trainer.device), coeff))
    return batches


def _between_steps(trainer: Trainer) -> None:
    """What the ranks do together or not at all: end a save that all have written, stop if asked."""
    asked, writing, stale = trainer.ranks.largest(
        trainer.stop.number, int(trainer.checkpoints.writing), int(trainer.fence.stale())
    )
    if stale:
        raise trainer.fence.as_error()
    if not writing:
        trainer.checkpoints.collect(trainer.reporter)
    if asked == 0:
        return
    step = trainer.position.step
    if step > 0:
        _save(trainer, wait=True)
    error = stopped_by_signal(asked, step)
    trainer.reporter.event("stopped", step=step, exit_code=error.exit_code)
    raise error


def _save(trainer: Trainer, *, wait: bool = False) -> None:
    engine, position, reporter = trainer.engine, trainer.position, trainer.reporter
    if trainer.config.health.replica_check_steps is not None:
        refuse_different_replicas(engine, position.step, trainer.checkpoints.newest)
    with trainer.heartbeat.phase("saving", trainer.config.run.storage_timeout):
        trainer.checkpoints.save(engine, position, trainer.state(), reporter, wait=wait)
