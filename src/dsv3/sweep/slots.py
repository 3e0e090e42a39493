"""How many runs of a sweep this machine trains side by side, and what each of them may use."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dsv3.config.root import RunConfig
from dsv3.errors import CapacityError, ConfigError, Problem
from dsv3.launch.environment import threads_per_rank
from dsv3.machine import Machine
from dsv3.plan.capacity import device_kind
from dsv3.plan.memory import state_bytes_of_all_ranks
from dsv3.plan.quantities import plural, size


@dataclass(frozen=True)
class Slots:
    """Room for runs: `environments` has, for each slot, what its launcher has beside ours.

    `warning` says what is asked for beyond the cores.
    """

    environments: tuple[Mapping[str, str], ...]
    warning: str | None = None

    @property
    def count(self) -> int:
        """How many runs are trained side by side."""
        return len(self.environments)


def slots(configs: Sequence[RunConfig], machine: Machine) -> Slots:
    """The slots that `launcher.parallel` asks for; no more than there are runs.

    A run has the same threads and as many GPUs as alone, so the same bits. Cores may be shared, for
    a price in time, and that is warned about; raises CapacityError where GPUs or memory would have
    to be, ConfigError if the runs name different numbers.
    """
    asked = {config.launcher.parallel for config in configs}
    if len(asked) > 1:
        setting = f"launcher.parallel={','.join(_yaml(each) for each in asked)}"
        raise ConfigError(Problem(setting, "it is one number for all runs of a sweep", "give one"))
    (parallel,) = asked
    most, scarce = _room(configs, machine)
    count = min(len(configs), most if parallel is None else parallel)
    setting = f"launcher.parallel={_yaml(parallel)}"
    if count > most and scarce != "cores":
        rule = f"{scarce} here suffice for {plural(most, 'run')} at a time"
        raise CapacityError(Problem(setting, rule, f"write launcher.parallel={most}, or null"))
    warning = _overcommitted(setting, configs, count, machine) if count > most else None
    return Slots(tuple(_environments(configs, machine, count)), warning)


def _room(configs: Sequence[RunConfig], machine: Machine) -> tuple[int, str]:
    """How many of the largest run fit, one at least, and what there is too little of for more."""
    ranks = max(config.parallelism.world_size for config in configs)
    if any(device_kind(config, machine) == "cuda" for config in configs):
        return max(1, len(machine.gpus) // ranks), "the GPUs"
    state = max(map(state_bytes_of_all_ranks, configs))
    by_memory = max(1, machine.memory_bytes // state)
    by_cores = max(1, machine.cores // max(map(_threads, configs)))
    if by_memory < by_cores:
        return by_memory, f"{size(machine.memory_bytes)} of memory"
    return by_cores, "cores"


def _threads(config: RunConfig) -> int:
    return config.parallelism.world_size * threads_per_rank(config)


def _overcommitted(setting: str, configs: Sequence[RunConfig], count: int, machine: Machine) -> str:
    threads = max(map(_threads, configs))
    remedy = "slower than one after the other, and the same bits"
    if any(config.launcher.threads_per_rank is None for config in configs):
        remedy += "; launcher.threads_per_rank=1 makes room (and other bits than more threads)"
    return (
        f"{setting}: {plural(count, 'run')} of {plural(threads, 'thread')} share"
        f" {plural(machine.cores, 'core')}; {remedy}"
    )


def _environments(
    configs: Sequence[RunConfig], machine: Machine, count: int
) -> list[dict[str, str]]:
    """GPUs of its own for each slot; on a CPU the kernel shares out the cores."""
    on_gpus = any(device_kind(config, machine) == "cuda" for config in configs)
    if count == 1 or not on_gpus:
        return [{} for _ in range(count)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(n) for n in range(len(machine.gpus))]
    ranks = max(config.parallelism.world_size for config in configs)
    return [
        {"CUDA_VISIBLE_DEVICES": ",".join(names[slot * ranks : (slot + 1) * ranks])}
        for slot in range(count)
    ]


def _yaml(parallel: int | None) -> str:
    return "null" if parallel is None else str(parallel)
