"""Two ranks meet through DeepSpeed on the socket their launcher holds, off the network."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed

RANK = """
import os, psutil, torch
from dsv3.engine.distributed import process_group
with process_group("cpu"):
    from deepspeed import comm
    total = torch.tensor([comm.get_rank() + 1.0])
    comm.all_reduce(total)
    assert total.item() == 3.0 and comm.get_world_size() == 2
    connections = psutil.Process().net_connections("inet")
    listening = {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    assert listening <= {"127.0.0.1", "::1"}, listening
    comm.barrier()
"""


def test_ranks_meet_on_the_loopback_interface(tmp_path: Path) -> None:
    ranks = []
    with socket.create_server(("127.0.0.1", 0)) as store:
        for rank in (1, 0):  # who connects first waits for the server
            own = {
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(store.getsockname()[1]),
                "GLOO_SOCKET_IFNAME": "lo",
                "OMP_NUM_THREADS": "1",
                "DSV3_STORE_SOCKET": str(store.fileno() if rank == 0 else -1),
            }
            command = [sys.executable, "-c", RANK]
            given = [store.fileno()] if rank == 0 else []
            process = subprocess.Popen(
                command, env={**os.environ, **own}, cwd=tmp_path, pass_fds=given
            )
            ranks.append(process)
    try:
        assert [rank.wait(60) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
