"""What a machine has, through an NVML that the test writes."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest

from dsv3 import machine
from dsv3.machine import Gpu, this_machine, usable_cores, usable_memory_bytes


class FakeNvml(ModuleType):
    """Three GPUs, as the bindings show them."""

    class NVMLError(Exception):
        pass

    uuids = ("GPU-a", "GPU-b", "GPU-c")

    def __init__(self, *, driver: bool = True) -> None:
        super().__init__("pynvml")
        self.driver, self.open = driver, 0

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("no driver")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "570.1"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.uuids)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if not 0 <= index < len(self.uuids):
            raise self.NVMLError("invalid argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        if uuid not in self.uuids:
            raise self.NVMLError("not found")
        return self.uuids.index(uuid)

    def nvmlDeviceGetName(self, handle: int) -> str:
        return f"card {handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=(handle + 1) * 2**30)

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> list[int]:
        return [9, 0]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def test_every_gpu_is_found_and_nvml_closed(nvml: FakeNvml) -> None:
    machine = this_machine()
    assert machine.gpus[1] == Gpu("card 1", 2 * 2**30, (9, 0))
    assert len(machine.gpus) == 3
    assert machine.gpu_driver == "570.1"
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("", []),
        ("2,0", ["card 2", "card 0"]),
        ("GPU-b", ["card 1"]),
        ("0,7,1", ["card 0"]),
        ("-1", []),
        ("nonsense", []),
    ],
)
def test_only_visible_gpus_count_as_cuda_reads_the_variable(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.name for gpu in this_machine().gpus] == names
    assert nvml.open == 0


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(driver=False))
    machine = this_machine()
    assert (machine.gpus, machine.gpu_driver) == ((), None)
    assert machine.cores >= 1


def test_without_the_bindings_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert this_machine().gpus == ()


def test_a_container_limits_the_memory(tmp_path: Path) -> None:
    total = psutil.virtual_memory().total
    limit, unlimited = tmp_path / "limit", tmp_path / "unlimited"
    limit.write_text("1048576\n")
    unlimited.write_text("max\n")
    assert usable_memory_bytes((limit, unlimited)) == 1048576
    assert usable_memory_bytes((unlimited, tmp_path / "absent")) == total


def test_cores_respect_the_quota_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _pid: set(range(64)))
    quota = tmp_path / "cpu.max"
    for text, cores in (
        ("max 100000\n", 64),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("10000 100000\n", 1),
        ("9900000 100000\n", 64),
        ("nonsense", 64),
    ):
        quota.write_text(text)
        assert usable_cores(quota) == cores
    assert usable_cores(tmp_path / "missing") == 64
