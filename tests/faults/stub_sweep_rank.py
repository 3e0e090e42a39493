"""A rank that only counts; start, lock, signals, files and end are those of a real one.

It saves every SAVE_EVERY steps and goes on from there. Each step, once it is sure to stay, is in
metrics.jsonl once. STUB_FAIL: the arm (its balance) that meets a NaN; STUB_STEP_S: how long a step
takes; STUB_HOLD: the run waits before its last step while that file exists.
"""

import os
import sys
import time
import types
from pathlib import Path

from dsv3.errors import NumericHealthError
from dsv3.runs.provenance import Provenance
from dsv3.runs.records import EventLog, MetricsLog
from dsv3.train import worker
from dsv3.train.signals import stopped_by_signal

STEPS, SAVE_EVERY = 20, 4


def train_attempt(run, arguments, stop, lock, _heartbeat):
    """Count from the last save to the end."""
    config = run.config(arguments.config_file)
    frozen = run.provenance()
    record = {key: frozen[key] for key in ("data_fingerprint", "numerics_version")}
    attempt = run.begin_attempt(lock, config, Provenance(record, ""))
    saves = run.checkpoints
    begin = max((int(path.name.removeprefix("step-")) for path in saves.iterdir()), default=0)
    with (
        EventLog(run.events_path) as events,
        MetricsLog(run.metrics_path, last_step=begin) as metrics,
    ):
        events.event("started", step=begin, attempt=attempt)
        for step in range(begin + 1, STEPS + 1):
            if stop.requested:
                save(saves, step - 1)
                raise stopped_by_signal(stop.number, step - 1)
            if os.environ.get("STUB_FAIL") == config.balance.strategy and step == 3:
                raise NumericHealthError("step 3: a loss that is not a number")
            time.sleep(float(os.environ.get("STUB_STEP_S", "0.01")))
            hold = os.environ.get("STUB_HOLD")
            while step == STEPS and hold and Path(hold).exists() and not stop.requested:
                time.sleep(0.01)
            tokens = step * config.schedule.total_tokens // STEPS
            metrics.append(
                {"step": step, "tokens": tokens, "loss": 5.0 - 0.1 * step, "tokens_per_second": 1e5}
            )
            if step % SAVE_EVERY == 0:
                save(saves, step)
        events.event("finished", attempt=attempt)
    run.mark_done({"loss": 3.0, "bpb": 1.0, "unigram_entropy": 5.0, "steps": STEPS})


def save(saves, step):
    """A checkpoint is there or not: one call makes it."""
    if step > 0:
        (saves / f"step-{step}").mkdir(exist_ok=True)


if __name__ == "__main__":
    stub = types.ModuleType("dsv3.train.attempt")
    stub.train_attempt = train_attempt
    sys.modules[stub.__name__] = stub
    sys.exit(worker.main())
