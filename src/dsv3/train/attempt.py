"""One attempt at a run: lock, data, build, resume, train, result."""

import os
import sys
import time
from typing import Any

import torch

from dsv3.config.root import RunConfig
from dsv3.data.loader import TrainingLoader
from dsv3.data.prepare import Prepared, prepare
from dsv3.data.validation import validation_samples
from dsv3.engine.distributed import process_group
from dsv3.runs.directory import RunDirectory
from dsv3.runs.lock import RunLock
from dsv3.runs.provenance import collect
from dsv3.runs.rank import RankArguments
from dsv3.runs.records import EventLog, MetricsLog
from dsv3.train.build import build_engine, build_model, choose_device
from dsv3.train.checkpointing import Checkpoints
from dsv3.train.console import console_for
from dsv3.train.evaluation import Evaluation
from dsv3.train.hooks import Files, Hooks
from dsv3.train.loop import Trainer, run_to_end
from dsv3.train.position import Position
from dsv3.train.signals import StopRequest
from dsv3.train.tracking import mirror_for


def train_attempt(run: RunDirectory, arguments: RankArguments, stop: StopRequest) -> None:
    """Train under the run's lock and write DONE; does nothing if it is there already.

    Raises LockHeldError if another process trains the run, DataError if its data changed, and
    whatever ends the training early.
    """
    config = run.config(arguments.config_file)
    with RunLock(run.lock_path) as lock:
        if run.result() is not None:
            return
        began = time.monotonic()
        data = config.data
        prepared = prepare(data, vocab_size=config.model.vocab_size, progress=lambda *_: None)
        threads = int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads()))
        torch.set_num_threads(threads)
        provenance = collect(
            config,
            argv=sys.argv,
            data_fingerprint=prepared.fingerprint,
            threads_per_rank=threads,
        )
        attempt = run.begin_attempt(lock, config, provenance)
        device = choose_device(config)
        with process_group(device):
            evaluation = _train(run, config, prepared, device, attempt, stop, arguments)
        run.mark_done(_result(evaluation, prepared, config, time.monotonic() - began))
