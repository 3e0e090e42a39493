"""Process group of a rank: joins the launcher's, or makes a group of one without opening a port."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed

from dsv3.engine import rendezvous
from dsv3.errors import ConfigError, Problem
from dsv3.machine import has_loopback

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def start(device: torch.device | str) -> None:
    """Initialise torch.distributed and DeepSpeed's communication for this process.

    Under a launcher (all of `LAUNCHER_VARIABLES` set) joins its ranks; otherwise this process is
    the only rank and meets itself in memory, so that any number of runs share a machine.
    Raises ConfigError if a launcher set only some of the variables.
    """
    kind = torch.device(device).type
    os.environ["DS_ACCELERATOR"] = kind  # read once, by the first import of DeepSpeed
    from dsv3.engine import vendor

    accelerator = vendor.get_accelerator().device_name()
    assert accelerator == kind, f"DeepSpeed was imported before, for {accelerator=}"
    if kind == "cpu":
        # DeepSpeed would compile its shared memory op with ninja and g++ (40 s, or a hard failure
        # without a compiler); only inference uses it.
        vendor.deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # ZeRO calls a collective by its old name in every step.
    warnings.filterwarnings(
        "ignore", message=r"`?torch\.distributed\..*deprecated", category=FutureWarning
    )
    backend = "gloo" if kind == "cpu" else "nccl"
    if not _launched():
        _start_alone(backend)
    elif rendezvous.is_local():
        rendezvous.join_local(backend)
    elif rendezvous.is_remote():
        rendezvous.join_remote(backend)
    vendor.comm.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def stop() -> None:
    """Leave the process group; without this about one CPU process in thirteen aborts at exit."""
    if not torch.distributed.is_initialized():
        return
    from dsv3.engine import vendor

    # Through DeepSpeed, so that it forgets the expert groups as well and `start` works again.
    vendor.comm.destroy_process_group()


@contextmanager
def process_group(device: torch.device | str) -> Iterator[None]:
    """`start`, and `stop` however the block ends."""
    start(device)
    try:
        yield
    finally:
        stop()


def _launched() -> bool:
    missing = [name for name in LAUNCHER_VARIABLES if name not in os.environ]
    if "RANK" in missing and "WORLD_SIZE" in missing:
        return False
    if missing:
        raise ConfigError(
            [
                Problem(
                    f"{name} is not set", "a launcher sets all of " + ", ".join(LAUNCHER_VARIABLES)
                )
                for name in missing
            ]
        )
    return True


def _start_alone(backend: str) -> None:
    if backend == "gloo" and has_loopback():
        # gloo opens a socket even for one rank: keep it off the network, and independent of what
        # the host's name resolves to.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on this one
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()  # type: ignore[attr-defined]
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)


@contextmanager
def fake_process_group(rank: int, world_size: int) -> Iterator[None]:
    """A group of which this process is a rank and the others are nobody: nothing is moved.

    For programs on tensors without data.
    """
    assert not torch.distributed.is_initialized(), "this process is in a group already"
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group(
        "fake", store=FakeStore(), rank=rank, world_size=world_size
    )
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
