"""One attempt at a run, from the lock to the result."""

import os
import sys
import time
from typing import Any

import torch

from dsv3.checkpoint.collective import on_first
from dsv3.checkpoint.random_state import seed_streams
from dsv3.config.root import RunConfig
from dsv3.data.prepare import prepare, unseen
from dsv3.data.prepared import Prepared
from dsv3.data.samples import TrainingSamples, unigram_loss, validation_samples
from dsv3.engine.distributed import process_group
from dsv3.plan.scheduled import scheduled
from dsv3.runs.directory import RunDirectory
from dsv3.runs.lock import RunLock
from dsv3.runs.provenance import collect
from dsv3.runs.rank import PREPARED_ONLY_VARIABLE, RankArguments
from dsv3.train.alarms import Alarms
from dsv3.train.build import build_engine, build_model, choose_device
from dsv3.train.checkpointing import Checkpoints
from dsv3.train.digests import Digests, StepDigests
from dsv3.train.fence import Fence
from dsv3.train.heartbeat import Heartbeat
from dsv3.train.layers import ModelLayers
from dsv3.train.loop import Trainer, train_to_end
from dsv3.train.policies import Policies
from dsv3.train.proof import Proof
from dsv3.train.ranks import Ranks
from dsv3.train.reporter import Reporter, Reports
from dsv3.train.signals import StopRequest
from dsv3.train.stages import PipelinedModel, build_pipeline
from dsv3.train.start_hashes import write_start
from dsv3.train.timeline import Recorder


def train_attempt(
    run: RunDirectory,
    arguments: RankArguments,
    stop: StopRequest,
    lock: RunLock | None,
    heartbeat: Heartbeat,
) -> None:
    """Train under the run's lock and write DONE; nothing if it is there already.

    The first rank holds the lock, and has the run's files to itself. Raises DataError if the data
    of the run changed, and whatever ends the training early.
    """
    config = run.config(arguments.config_file)
    if run.result() is not None:
        return
    began_s = time.monotonic()
    prepared = prepare(
        config.data,
        vocab_size=config.model.vocab_size,
        progress=unseen,
        only_open=PREPARED_ONLY_VARIABLE in os.environ,
    )
    provenance = collect(
        config,
        argv=sys.argv,
        data_fingerprint=prepared.fingerprint,
        threads_per_rank=torch.get_num_threads(),
    )
    device = choose_device(config)
    with process_group(device):
        ranks = Ranks(config.parallelism, device)

        def begin() -> int:
            assert lock is not None, "the first rank holds the lock"
            return run.begin_attempt(lock, config, provenance)

        attempt = on_first(ranks, begin)
        quiet = arguments.quiet
        result = _train(run, config, prepared, ranks, attempt, quiet, stop, heartbeat)
        if ranks.is_first:
            run.mark_done(result | {"last_attempt_s": time.monotonic() - began_s})


def _train(
    run: RunDirectory,
    config: RunConfig,
    prepared: Prepared,
    ranks: Ranks,
    attempt: int,
    quiet: bool,
    stop: StopRequest,
    heartbeat: Heartbeat,
) -> dict[str, Any]:
    device = ranks.device
    model = build_model(config, device, ranks.place)
    pipeline = build_pipeline(model, config, ranks.place, device)
    engine = build_engine(model, config, device, pipeline)
    checkpoints = Checkpoints(run, config, device=device, ranks=ranks, attempt=attempt)
    seed_streams(config.seed, ranks.rank, step=0, device=device)
    with heartbeat.phase("loading a checkpoint", config.run.storage_timeout):
        position, state, skipped = checkpoints.resume(engine)
    reporter = Reports()
    if ranks.is_first:
        reporter = Reporter(run, config, done_steps=position.step, quiet=quiet)
    reporter.event("started", attempt=attempt, step=position.step, skipped_checkpoints=skipped)
    for text in skipped:
        reporter.note(f"passed over a checkpoint: {text}")
    if position.step > 0:
        reporter.note(f"going on from {checkpoints.newest()}")
    length = config.schedule.sequence_length
    samples = TrainingSamples(prepared, length, config.seed)
    if position.step == 0:
        fingerprint = prepared.fingerprint
        write_start(run, config, engine, samples, ranks, data_fingerprint=fingerprint)
    held_out = validation_samples(prepared, length, config.evaluation.sequences)
    layers = ModelLayers.of_model(model, device, ranks)
    digests = Digests()
    if config.run.digests:
        curves, fingerprint = scheduled(config), prepared.fingerprint
        digests = StepDigests(ranks, engine, layers, curves, reporter, data_fingerprint=fingerprint)
    trainer = Trainer(
        run=run,
        ranks=ranks,
        heartbeat=heartbeat,
        config=config,
        device=device,
        model=model if pipeline is None else PipelinedModel(model, pipeline),
        layers=layers,
        engine=engine,
        samples=samples,
        validation=held_out,
        checkpoints=checkpoints,
        reporter=reporter,
        stop=stop,
        position=position,
        alarms=Alarms(config.health, layers, None if state is None else state["alarms"]),
        digests=digests,
        policies=Policies(config.health, None if state is None else state["policies"]),
        recorder=Recorder(config, ranks, run.path, device),
        proof=Proof(config, ranks, model, run, attempt=attempt),
        fence=Fence(run, is_first=ranks.is_first),
    )
    try:
        evaluation = train_to_end(trainer)
        reporter.sync()  # before the result, which counts on the lines
    finally:
        checkpoints.close(reporter)
        heartbeat.end(config.run.startup_timeout)
        reporter.close()
        engine.close()
    return evaluation.record() | {
        "steps": trainer.position.step,
        "tokens_trained": trainer.position.tokens,
        # Of the same targets as the loss, so that the two compare.
        "unigram_entropy": unigram_loss(prepared, held_out),
    }
