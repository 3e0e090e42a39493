"""The environment of a rank, made from the launcher's."""

import os
from collections.abc import Mapping
from pathlib import Path

import dsv3
from dsv3.config.root import RunConfig
from dsv3.machine import has_loopback, usable_cores
from dsv3.runs.rank import (
    BOARD_VARIABLE,
    LAUNCHER_PID_VARIABLE,
    STORE_SOCKET_VARIABLE,
    STORE_VARIABLE,
)

LOOPBACK = "127.0.0.1"
# A single rank meets itself in memory; what an outer srun or torchrun left in the environment
# would make it wait for ranks that never come.
_DISTRIBUTED_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    BOARD_VARIABLE,
    STORE_SOCKET_VARIABLE,
    STORE_VARIABLE,
)
# glibc: serve up to 1 GiB from the heap, never trim it, grow it by 64 MiB. A step on a CPU
# otherwise spends a fifth of its time on page faults of memory it has just given back.
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
# GNU OpenMP: how often a waiting thread looks before it sleeps. As fast as the default on idle
# cores; beside busy neighbours a step takes a few times as long instead of a hundred.
_OPENMP_SPINS = "20000"


def threads_per_rank(config: RunConfig) -> int:
    """CPU threads of each rank: as configured, or the cores shared out over the local ranks."""
    if config.launcher.threads_per_rank is not None:
        return config.launcher.threads_per_rank
    return max(1, usable_cores() // config.parallelism.world_size)


def rank_environment(
    config: RunConfig, environment: Mapping[str, str], *, threads_each: int | None = None
) -> dict[str, str]:
    """The environment of the only rank, made from the launcher's.

    `threads_each` if the cores here are not to be shared out over all ranks.
    """
    own = {
        name: value
        for name, value in environment.items()
        if name not in _DISTRIBUTED_VARIABLES and not name.startswith("TORCHELASTIC_")
    }
    threads = str(threads_each or threads_per_rank(config))
    own |= {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "PYTHONFAULTHANDLER": "1",
        LAUNCHER_PID_VARIABLE: str(os.getpid()),
    }
    if config.launcher.keep_memory and config.launcher.device != "cuda":
        own = {**_KEEP_MEMORY, **own}
    if "OMP_WAIT_POLICY" not in own:
        own.setdefault("GOMP_SPINCOUNT", _OPENMP_SPINS)
    # The rank does not import from the current directory (-P); it may be where dsv3 itself is.
    package_root = Path(dsv3.__file__).resolve().parents[1]
    if package_root == Path.cwd():
        own["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(package_root), own.get("PYTHONPATH")])
        )
    return own


def member_environment(
    common: Mapping[str, str], rank: int, world_size: int, port: int
) -> dict[str, str]:
    """`common` as one of the ranks of this machine that meet at `port` has it.

    The names are those of every launcher of torch programs. gloo stays on the loopback interface:
    by default it would listen on whatever address the host's name resolves to.
    """
    own = {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": str(port),
    }
    if has_loopback():
        own["GLOO_SOCKET_IFNAME"] = "lo"
    return {**common, **own}
