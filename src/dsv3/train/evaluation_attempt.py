"""One evaluation of a run from the outside: from its checkpoint to the files."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dsv3.config.root import RunConfig
from dsv3.data.prepare import prepare, unseen
from dsv3.data.samples import ValidationSample, validation_samples
from dsv3.model.transformer import Transformer
from dsv3.runs.directory import RunDirectory
from dsv3.runs.rank import EvaluationArguments
from dsv3.train.build import build_model, choose_device
from dsv3.train.console import Presenter, open_console
from dsv3.train.evaluation import Evaluation, evaluate
from dsv3.train.evaluation_files import Weights, save_evaluation
from dsv3.train.health import refuse_non_finite_loss
from dsv3.train.layers import ModelLayers
from dsv3.train.position import Position
from dsv3.train.proof import Proof
from dsv3.train.weights import find_checkpoint, load_weights


def evaluate_run(
    run: RunDirectory, arguments: EvaluationArguments, check: Callable[[], None]
) -> Path:
    """Evaluate the weights of a checkpoint as the run itself would; returns where it is written.

    `check` is called between the parts of the work and may raise to end it. Raises CheckpointError
    without a good checkpoint, DataError if the data are not the run's, NumericHealthError if the
    loss is not finite.
    """
    config = run.config(arguments.config_file)
    prepared = prepare(config.data, vocab_size=config.model.vocab_size, progress=unseen)
    run.check_frozen(prepared.fingerprint)
    length = config.schedule.sequence_length
    samples = validation_samples(prepared, length, config.evaluation.sequences)
    batches = math.ceil(len(samples) / config.schedule.micro_batch_size)
    shown = open_console(total_steps=batches, done_steps=0, quiet=arguments.quiet, unit="batch")
    check()
    try:
        checkpoint, skipped = find_checkpoint(run, config, arguments.step)
        for text in skipped:
            shown.note(f"passed over a checkpoint: {text}")
        shown.note(f"evaluating {checkpoint.path}")
        check()
        device = choose_device(config)
        model = build_model(config, device)
        load_weights(checkpoint, model, config, ema=arguments.ema)
        position = Position.from_state(checkpoint.state["position"])
        evaluation = _evaluate(model, samples, config, device, shown, check)
    finally:
        shown.close()
    refuse_non_finite_loss(evaluation.loss, position, lambda: None)
    weights: Weights = "ema" if arguments.ema else "trained"
    return save_evaluation(
        run, config, device, position, evaluation, by_training=False, weights=weights
    )


def _evaluate(
    model: Transformer,
    samples: list[ValidationSample],
    config: RunConfig,
    device: torch.device,
    shown: Presenter,
    check: Callable[[], None],
) -> Evaluation:
    began_s = time.monotonic()

    def on_batch(done: int, loss: float) -> None:
        recorded()
        check()
        sequences = min(done * config.schedule.micro_batch_size, len(samples))
        tokens = sequences * config.schedule.sequence_length
        speed = tokens / max(time.monotonic() - began_s, 1e-9)
        shown.step(done, loss=loss, tokens_per_second=speed)

    model.eval()
    proof = Proof(config, None, model, None)
    with torch.no_grad(), proof.evaluation() as recorded:
        evaluation = evaluate(
            model,
            samples,
            config.schedule.micro_batch_size,
            device,
            layers=ModelLayers.of_model(model, device),
            mtp_depth=config.mtp.num_nextn_predict_layers,
            on_batch=on_batch,
        )
    proof.after_evaluation()
    return evaluation
