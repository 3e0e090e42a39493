"""A rank whose work is to meet the others over gloo; its start, its signs and its end are real.

Run as `python -m stub_rank RUN_DIR`; what it does beyond that is in STUB: `wait` (for rank 0 to
hang by itself in the middle of a step) or `defect` (of rank 1).
"""

import os
import sys
import time
import types

from dsv3.train import worker


def train_attempt(run, _arguments, stop, lock, heartbeat):
    """Reduce, beat and look for a signal, step after step."""
    import torch
    from torch import distributed

    from dsv3.engine import rendezvous

    rank, action = int(os.environ["RANK"]), os.environ.get("STUB", "")
    assert (lock is not None) == (rank == 0)
    rendezvous.join_local("gloo")
    step = 0
    try:
        while True:
            asked = torch.tensor([float(stop.requested)])
            distributed.all_reduce(asked)
            if asked.item() > 0:
                heartbeat.end(5.0)
                if stop.signal is None:
                    stop._remember(15, None)
                raise stop.as_error(step)
            step += 1
            heartbeat.beat(step)
            (run.path / f"step-{rank}").write_text(f"{os.getpid()} {step}")
            if action == "defect" and rank == 1 and step == 3:
                raise ZeroDivisionError("on purpose")
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
