"""A rank whose work is to meet the others over gloo; its start, its signs and its end are real.

Run as `python -m stub_rank RUN_DIR`; with STUB=hang rank 0 stands still in the middle of a step.
"""

import os
import sys
import time
import types

from dsv3.train import worker


def train_attempt(run, _arguments, _stop, lock, heartbeat):
    """Reduce and beat, step after step."""
    import torch
    from torch import distributed

    from dsv3.engine import rendezvous

    rank, action = int(os.environ["RANK"]), os.environ.get("STUB", "")
    assert (lock is not None) == (rank == 0)
    rendezvous.join_local("gloo")
    step = 0
    try:
        while True:
            distributed.all_reduce(torch.ones(1))
            step += 1
            heartbeat.beat(step)
            (run.path / f"step-{rank}").write_text(f"{os.getpid()} {step}")
            if action == "hang" and rank == 0 and step == 3:
                deaf_and_busy()
            time.sleep(0.02)
    finally:
        distributed.destroy_process_group()


def deaf_and_busy():
    """What a deadlock looks like."""
    time.sleep(120)


if __name__ == "__main__":
    stub = types.ModuleType("dsv3.train.attempt")
    stub.train_attempt = train_attempt
    sys.modules[stub.__name__] = stub
    sys.exit(worker.main())
