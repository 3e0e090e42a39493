"""How ranks meet: at a store on a socket that their launcher opened, or at rank 0's machine."""

import os
from datetime import timedelta

import torch.distributed

STORE_SOCKET_VARIABLE = "DSV3_STORE_SOCKET"
"""Set by the local launcher: the descriptor of a listening socket for rank 0, -1 for the others."""
STORE_VARIABLE = "DSV3_STORE"
"""Set by launchers on several machines: `serve` if rank 0 serves the store, else `join`."""
TIMEOUT = timedelta(days=1)
"""Of a collective. A rank that does not come is noticed by the launcher, within limits that know
what the ranks are doing; a short limit here would end a run whose first rank saves for long."""


def is_local() -> bool:
    """Whether a local launcher started this rank."""
    return STORE_SOCKET_VARIABLE in os.environ


def join_local(backend: str) -> None:
    """Initialise torch.distributed among the ranks of this launch.

    Torch by itself would have rank 0 bind the port anew, on every interface; here the port has been
    listening since before any rank ran, on the loopback interface only.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    descriptor = int(os.environ[STORE_SOCKET_VARIABLE])
    serves = descriptor >= 0
    if serves:
        os.set_inheritable(descriptor, False)
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size,
        timeout=TIMEOUT,
        is_master=serves,
        wait_for_workers=False,
        master_listen_fd=descriptor if serves else None,
    )
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT
    )


def is_remote() -> bool:
    """Whether a launcher on several machines, which watches its ranks, started this rank."""
    return STORE_VARIABLE in os.environ


def join_remote(backend: str) -> None:
    """Initialise torch.distributed among ranks of several machines.

    As torch does by itself, but without a limit of its own on how long ranks wait for each other.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    everyones = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size,
        timeout=TIMEOUT,
        is_master=rank == 0 and os.environ[STORE_VARIABLE] == "serve",
        wait_for_workers=False,
    )
    # The agent of torchrun keeps things of its own in the same store.
    store = torch.distributed.PrefixStore("dsv3", everyones)  # type: ignore[attr-defined]
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT
    )
