import pytest

from dsv3.config.compose import compose
from dsv3.config.root import RunConfig
from dsv3.errors import CapacityError, ConfigError
from dsv3.machine import Gpu, Machine
from dsv3.sweep.slots import slots

GB = 1 << 30
GPU = Gpu("H800", 80 * GB, (9, 0))


def machine(*, cores: int = 8, gpus: int = 0, memory: int = 64 * GB) -> Machine:
    return Machine((GPU,) * gpus, cores, memory, None)


@pytest.fixture(scope="module")
def nano() -> RunConfig:
    return compose(["model=moe_nano"]).config


def configs(nano: RunConfig, count: int = 10, *, ranks: int = 1, **launcher: object):
    layout = nano.parallelism.model_copy(update={"expert_data_parallel_size": ranks})
    update = {"launcher": nano.launcher.model_copy(update=launcher), "parallelism": layout}
    return [nano.model_copy(update=update)] * count


@pytest.mark.parametrize(
    ("ranks", "threads", "wanted"),
    [(1, 1, 8), (1, 2, 4), (2, 2, 2), (1, 3, 2), (4, 4, 1), (1, None, 1), (2, None, 1)],
)
def test_as_many_as_the_cores_hold(nano, monkeypatch, ranks, threads, wanted) -> None:
    monkeypatch.setattr("dsv3.launch.environment.usable_cores", lambda: 8)
    asked = configs(nano, ranks=ranks, threads_per_rank=threads, parallel=None, device="cpu")
    assert slots(asked, machine()).count == wanted


def test_never_more_than_there_are_runs(nano) -> None:
    asked = configs(nano, 3, threads_per_rank=1, parallel=None, device="cpu")
    assert slots(asked, machine()).count == 3
    assert slots(configs(nano, 1, parallel=9, device="cpu"), machine()).count == 1


def test_the_default_is_one_after_the_other(nano) -> None:
    assert nano.launcher.parallel == 1
    assert slots([nano] * 4, machine()).environments == ({},)


def test_sharing_cores_is_warned_about(nano) -> None:
    room = slots(configs(nano, threads_per_rank=3, parallel=4, device="cpu"), machine())
    assert room.count == 4 and room.warning is not None
    assert "4 runs of 3 threads share 8 cores" in room.warning
    assert (
        slots(configs(nano, threads_per_rank=2, parallel=4, device="cpu"), machine()).warning
        is None
    )


def test_gpus_are_never_shared(nano, monkeypatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    asked = configs(nano, ranks=2, parallel=None)
    room = slots(asked, machine(gpus=5))
    assert [each["CUDA_VISIBLE_DEVICES"] for each in room.environments] == ["0,1", "2,3"]
    with pytest.raises(
        CapacityError, match=r"launcher\.parallel=3: the GPUs .* 2 runs.*parallel=2"
    ):
        slots(configs(nano, ranks=2, parallel=3), machine(gpus=5))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,GPU-a,3")
    room = slots(configs(nano, parallel=3), machine(gpus=3))
    assert [each["CUDA_VISIBLE_DEVICES"] for each in room.environments] == ["7", "GPU-a", "3"]


def test_memory_is_not_shared_either(nano) -> None:
    asked = configs(nano, threads_per_rank=1, parallel=4, device="cpu")
    with pytest.raises(CapacityError, match="of memory here suffice for 1 run"):
        slots(asked, machine(memory=30_000_000))


def test_one_number_for_all_runs(nano) -> None:
    with pytest.raises(ConfigError, match="one number for all runs"):
        slots([*configs(nano, 1, parallel=2), *configs(nano, 1, parallel=3)], machine())
