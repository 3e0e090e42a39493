"""What this machine has: GPUs (through NVML), cores, memory, packages; torch-free and quick."""

import contextlib
import gc
import math
import os
import platform
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

# How much processor time the container of this process may use (cgroup 2): quota and period.
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
# Where the kernel says how much memory the container of this process may use (cgroup 2 and 1).
CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@dataclass(frozen=True)
class Gpu:
    """One GPU this process may use; compute capability as (major, minor)."""

    name: str
    memory_bytes: int
    compute_capability: tuple[int, int]


@dataclass(frozen=True)
class Machine:
    """What there is for the ranks of one host."""

    gpus: tuple[Gpu, ...]
    cores: int
    memory_bytes: int
    gpu_driver: str | None


def this_machine() -> Machine:
    """Look at this machine, as far as this process may use it."""
    driver, gpus = _nvml_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    return Machine(
        gpus=gpus, cores=usable_cores(), memory_bytes=usable_memory_bytes(), gpu_driver=driver
    )


def describe_host() -> dict[str, Any]:
    """This machine as plain data, with its name and the model of its processor."""
    record = asdict(this_machine())
    record["gpus"] = list(record["gpus"])
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "processor": _processor(),
        **record,
    }


def installed_version(distribution: str) -> str | None:
    """Version of a distribution, read from its metadata and without importing it."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def has_loopback() -> bool:
    """Whether there is an interface `lo`, for what is to stay off the network."""
    return "lo" in (name for _, name in socket.if_nameindex())


def usable_cores(quota: Path = CPU_QUOTA) -> int:
    """Cores this process may use: its affinity, cut to the quota of its container."""
    cores = len(os.sched_getaffinity(0))
    try:
        allowed, period = quota.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if allowed == "max" else max(1, min(cores, math.ceil(int(allowed) / int(period))))


def usable_memory_bytes(limits: tuple[Path, ...] = CGROUP_LIMITS) -> int:
    """Memory of this machine, or of the container if that is less."""
    return min([psutil.virtual_memory().total, *filter(None, map(_limit_in, limits))])


def _limit_in(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _nvml_gpus(visible: str | None) -> tuple[str | None, tuple[Gpu, ...]]:
    """Driver version and the GPUs that CUDA_VISIBLE_DEVICES (`visible`) leaves, through NVML."""
    try:
        import pynvml
    except ImportError:
        return None, ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None, ()
    try:
        handles = _visible_handles(pynvml, visible)
        return str(pynvml.nvmlSystemGetDriverVersion()), tuple(_gpu(pynvml, h) for h in handles)
    except pynvml.NVMLError:
        return None, ()
    finally:
        pynvml.nvmlShutdown()


def _visible_handles(pynvml: Any, visible: str | None) -> list[Any]:
    """Handles in CUDA's order: all, or those listed (index or UUID) up to the first invalid one."""
    if visible is None:
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    handles = []
    for entry in filter(None, map(str.strip, visible.split(","))):
        try:
            if entry.lstrip("-").isdigit():
                handles.append(pynvml.nvmlDeviceGetHandleByIndex(int(entry)))
            else:
                handles.append(pynvml.nvmlDeviceGetHandleByUUID(entry))
        except (pynvml.NVMLError, ValueError, OverflowError):
            break
    return handles


def _gpu(pynvml: Any, handle: Any) -> Gpu:
    return Gpu(
        name=str(pynvml.nvmlDeviceGetName(handle)),
        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        compute_capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import a lot in the `with` block: Python does not look for garbage in it, then or later.

    The half a million objects of torch and what it brings are never garbage; searched again and
    again while they come, they cost a quarter of the time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
