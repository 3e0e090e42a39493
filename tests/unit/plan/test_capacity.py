"""What a machine is refused for, and what it is told."""

import subprocess
import sys

import pytest

from dsv3.config.compose import compose
from dsv3.errors import CapacityError
from dsv3.machine import Gpu, Machine
from dsv3.plan.capacity import check_capacity, device_kind
from dsv3.plan.description import describe
from dsv3.plan.peak import peak_memory

GIB = 2**30


def machine(*, gpus: int = 0, gpu_gib: int = 80, memory_gib: int = 24) -> Machine:
    cards = tuple(Gpu("H800", gpu_gib * GIB, (9, 0)) for _ in range(gpus))
    return Machine(cards, cores=2, memory_bytes=memory_gib * GIB, gpu_driver=None)


def refusal(overrides: list[str], there: Machine) -> str:
    with pytest.raises(CapacityError) as caught:
        check_capacity(compose(overrides).config, there)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_the_refusal_says_what_the_run_is_what_is_there_and_how_to_go_on() -> None:
    text = refusal(["model=moe_228b", "balance=aux_free", "recompute=none"], machine())
    for part in (
        "model=moe_228b",
        "228.7B parameters",
        "20.99B active",
        "578B tokens",
        "128 ranks (16 pipeline x 8 expert x 1 expert-data)",
        "of weights",
        "of gradients",
        "of optimizer state",
        "of activations and buffers",
        "recompute=full saves",
        "over all ranks",
        "no GPU (asked NVML), 2 cores, 24.0 GiB of memory",
        "128 GPUs needed, one for each rank, 0 found",
        "`dsv3 plan`",
        "--dry-run",
    ):
        assert part in text


def test_small_models_run_on_a_cpu() -> None:
    two_ranks = ["parallelism=ep2", "schedule.micro_batch_size=4"]
    for overrides in (["model=moe_nano"], ["model=moe_tiny"], ["model=moe_tiny", *two_ranks]):
        check_capacity(compose(overrides).config, machine(memory_gib=4))


def test_on_a_cpu_all_ranks_share_the_memory() -> None:
    config = compose(["model=moe_1b", "parallelism=dp2"]).config
    needed = peak_memory(config, device="cpu").bytes_of_all_ranks(2)
    here = Machine((), cores=2, memory_bytes=needed, gpu_driver=None)
    check_capacity(config, here)
    with pytest.raises(CapacityError, match="memory: all ranks together need"):
        check_capacity(config, Machine((), cores=2, memory_bytes=needed - 1, gpu_driver=None))


def test_every_rank_needs_its_own_gpu() -> None:
    check_capacity(compose(["model=moe_16b", "recompute=full"]).config, machine(gpus=8))
    assert "8 GPUs needed, one for each rank, 7 found" in refusal(
        ["model=moe_16b"], machine(gpus=7)
    )


def test_activations_count_and_the_advice_is_enough() -> None:
    """16B on eight GPUs of 80 GiB: the state fits, the activations only when they are dropped."""
    text = refusal(["model=moe_16b", "schedule.micro_batch_size=16"], machine(gpus=8))
    assert "memory per GPU: a rank needs" in text and "recompute=full saves" in text
    dropped = ["model=moe_16b", "schedule.micro_batch_size=16", "recompute=full"]
    check_capacity(compose(dropped).config, machine(gpus=8))


def test_a_rank_must_fit_its_gpu() -> None:
    config = compose(["model=moe_1b", "parallelism=single"]).config
    needed = peak_memory(config, device="cuda").bytes_per_rank
    for spare, fits in ((0, True), (-1, False)):
        here = Machine((Gpu("card", needed + spare, (9, 0)),), 2, GIB, None)
        if fits:
            check_capacity(config, here)
        else:
            with pytest.raises(CapacityError, match="memory per GPU: a rank needs"):
                check_capacity(config, here)


def test_a_gpu_that_is_not_there_cannot_be_asked_for() -> None:
    text = refusal(["launcher.device=cuda"], machine())
    assert "launcher.device=cuda: 1 GPU needed" in text


def test_a_cpu_can_be_asked_for_beside_gpus() -> None:
    config = compose(["launcher.device=cpu", "model=moe_nano"]).config
    check_capacity(config, machine(gpus=1, gpu_gib=0))
    assert device_kind(config, machine(gpus=1)) == "cpu"
    assert device_kind(compose([]).config, machine(gpus=1)) == "cuda"
    assert device_kind(compose([]).config, machine()) == "cpu"


def test_a_description_has_the_numbers_of_the_run() -> None:
    description = describe(compose(["model=moe_671b"]).config)
    assert (description.total, description.active) == (671_026_404_352, 36_625_603_584)
    assert (description.tokens, description.steps) == (14_800_000_000_000, 242_789)
    assert (description.world_size, description.layout) == (
        2048,
        "16 pipeline x 64 expert x 2 expert-data",
    )
    assert str(description).startswith("moe_671b: 671B parameters, 36.63B active per token; 14.8T")


def test_asking_needs_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from dsv3.config.compose import compose;"
        "from dsv3.machine import this_machine; from dsv3.plan.capacity import check_capacity;"
        "check_capacity(compose(['model=moe_nano']).config, this_machine());"
        "print([name for name in ('torch', 'numpy', 'deepspeed', 'rich') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
