"""A rank of a job that only counts; place, lock, signals, files and end are those of a real one.

The first rank counts, saves every SAVE_EVERY steps and goes on from there; the others keep it
company. STUB_STEPS, STUB_STEP_S: how long; before step HOLD_AT it waits while the file STUB_HOLD
is there. What rank STUB_RANK does in step STUB_AT, at the first
attempt only with STUB_ONCE: STUB_ACT = `misconfigured`, `defect`, `die`, `hang`.
"""

import os
import signal
import sys
import time
import types
from pathlib import Path

from dsv3.errors import ConfigError, Problem
from dsv3.runs.provenance import Provenance
from dsv3.runs.rank import Place
from dsv3.runs.records import EventLog, MetricsLog
from dsv3.train import worker
from dsv3.train.signals import stopped_by_signal

SAVE_EVERY, HOLD_AT = 4, 6
STEPS, STEP_S = (
    int(os.environ.get("STUB_STEPS", "20")),
    float(os.environ.get("STUB_STEP_S", "0.02")),
)


def train_attempt(run, arguments, stop, lock, heartbeat):
    """Count from the last save to the end."""
    place = Place.from_environment()
    if not place.first:
        keep_company(run, stop, heartbeat, place)
        return
    config = run.config(arguments.config_file)
    frozen = run.provenance()
    record = {key: frozen[key] for key in ("data_fingerprint", "numerics_version")}
    attempt = run.begin_attempt(lock, config, Provenance(record, ""))
    begin = max(
        (int(path.name.removeprefix("step-")) for path in run.checkpoints.iterdir()), default=0
    )
    with (
        EventLog(run.events_path) as events,
        MetricsLog(run.metrics_path, last_step=begin) as metrics,
    ):
        events.event("started", step=begin, attempt=attempt)
        for step in range(begin + 1, STEPS + 1):
            heartbeat.beat(step)
            act(place, step, attempt)
            while step == HOLD_AT and held() and not stop.requested:
                heartbeat.beat(step)
                time.sleep(0.05)
            if stop.requested:
                save(run, events, step - 1)
                events.event("stopped", step=step - 1, exit_code=85)
                raise stopped_by_signal(stop.number, step - 1)
            time.sleep(STEP_S)
            tokens = step * config.schedule.total_tokens // STEPS
            metrics.append(
                {"step": step, "tokens": tokens, "loss": 5.0 - 0.1 * step, "tokens_per_second": 1e5}
            )
            if step % SAVE_EVERY == 0:
                save(run, events, step)
    run.mark_done({"loss": 3.0, "bpb": 1.0, "unigram_entropy": 5.0, "steps": STEPS})


def held():
    """Whether the test is not done with this step."""
    hold = os.environ.get("STUB_HOLD")
    return hold is not None and Path(hold).exists()


def keep_company(run, stop, heartbeat, place):
    """Be there until the first rank is done, or somebody asks to stop."""
    step = 0
    while not run.done_path.exists():
        step += 1
        heartbeat.beat(step)
        act(place, step, len(run.attempts()))
        if stop.requested:
            raise stopped_by_signal(stop.number, step)
        time.sleep(STEP_S)


def act(place, step, attempt):
    """What this rank was told to do."""
    if place.rank != int(os.environ.get("STUB_RANK", "-1")) or step != int(os.environ["STUB_AT"]):
        return
    if os.environ.get("STUB_ONCE") and attempt > 1:
        return
    match os.environ["STUB_ACT"]:
        case "misconfigured":
            raise ConfigError(Problem("model.depth=3", "is no layer of this model"))
        case "defect":
            raise ValueError("a defect of the stub")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(300)


def save(run, events, step):
    """A checkpoint is there or not: one call makes it."""
    target = run.checkpoints / f"step-{step}"
    if step > 0 and not target.exists():
        target.mkdir()
        events.event("checkpoint", step=step, path=target.name)


if __name__ == "__main__":
    stub = types.ModuleType("dsv3.train.attempt")
    stub.train_attempt = train_attempt
    sys.modules[stub.__name__] = stub
    sys.exit(worker.main())
