"""Can this machine hold the run? Asked before anything is prepared, started or written."""

from typing import Literal

from dsv3.config.root import RunConfig
from dsv3.errors import CapacityError, Problem
from dsv3.machine import Machine
from dsv3.plan.advice import changes
from dsv3.plan.description import describe
from dsv3.plan.peak import PeakMemory, peak_memory
from dsv3.plan.quantities import plural, size
from dsv3.plan.te_capacity import check_transformer_engine

MOST_ADVICE = 4

GO_ON = (
    "`dsv3 plan` with the same overrides shows what it takes, `dsv3 train ... --dry-run` what"
    " would run; model=moe_tiny trains on any machine"
)


def check_capacity(config: RunConfig, machine: Machine) -> None:
    """Raise CapacityError if a step would need more memory than `machine` has, with what to change.

    On GPUs every rank needs one of its own; on a CPU all ranks share the memory. Also raised where
    Transformer Engine cannot run the precision recipe, for its GPU or for not being installed.
    """
    check_transformer_engine(config, machine)
    check_memory(config, machine)


def check_memory(config: RunConfig, machine: Machine) -> None:
    """The half of it that may be asked of machines elsewhere, of which nobody knows what runs."""
    peak = peak_memory(config, device=device_kind(config, machine))
    in_all = peak.bytes_of_all_ranks(config.parallelism.data_parallel_size)
    if peak.device == "cuda":
        problems = _gpu_problems(config, machine, peak)
    else:
        problems = _cpu_problems(config, machine, in_all)
    if problems:
        needs = Problem(f"model={config.model.name}", _needs(config, peak, in_all))
        here = Problem("", f"this machine has {describe_machine(machine)}", f"to go on: {GO_ON}")
        raise CapacityError([needs, *problems, here])


def device_kind(config: RunConfig, machine: Machine) -> Literal["cpu", "cuda"]:
    """The device the ranks would use: CUDA if asked for, or where there is a GPU."""
    match config.launcher.device:
        case "auto":
            return "cuda" if machine.gpus else "cpu"
        case device:
            return device


def describe_machine(machine: Machine) -> str:
    """`no GPU (asked NVML), 2 cores, 23.5 GiB of memory`."""
    gpus = "no GPU (asked NVML)"
    if machine.gpus:
        kinds = sorted({f"{gpu.name}, {size(gpu.memory_bytes)}" for gpu in machine.gpus})
        gpus = f"{plural(len(machine.gpus), 'GPU')} ({'; '.join(kinds)})"
    memory = size(machine.memory_bytes)
    return f"{gpus}, {plural(machine.cores, 'core')}, {memory} of memory"


def _needs(config: RunConfig, peak: PeakMemory, in_all: int) -> str:
    parts = peak.largest.parts
    optimizer = parts["masters"] + parts["moments"] + parts.get("average", 0)
    others = peak.bytes_per_rank - parts["weights"] - parts["gradients"] - optimizer
    stage = ""
    if len(peak.stages) > 1:
        stage = f" (stage {peak.largest.stage}, the fullest)"
    return (
        f"{str(describe(config)).removeprefix(f'{config.model.name}: ')};"
        f" per rank{stage} {size(parts['weights'])} of weights + {size(parts['gradients'])} of"
        f" gradients + {size(optimizer)} of optimizer state + {size(others)} of activations and"
        f" buffers = {size(peak.bytes_per_rank)}, {size(in_all)} over all ranks"
    )


def _gpu_problems(config: RunConfig, machine: Machine, peak: PeakMemory) -> list[Problem]:
    problems = []
    needed, found = config.parallelism.world_size, len(machine.gpus)
    if found < needed:
        problems.append(_too_few_gpus(config, found))
    smallest = min((gpu.memory_bytes for gpu in machine.gpus[:needed]), default=None)
    if smallest is not None and smallest < peak.bytes_per_rank:
        rule = f"a rank needs {size(peak.bytes_per_rank)}, a GPU here has {size(smallest)}"
        problems.append(Problem("memory per GPU", rule, _advice(config, "cuda")))
    return problems


def _cpu_problems(config: RunConfig, machine: Machine, in_all: int) -> list[Problem]:
    if in_all <= machine.memory_bytes:
        return []
    rule = f"all ranks together need {size(in_all)}, there is {size(machine.memory_bytes)}"
    problem = Problem("memory", rule, _advice(config, "cpu"))
    return [problem, _too_few_gpus(config, len(machine.gpus))]


def _advice(config: RunConfig, device: Literal["cpu", "cuda"]) -> str:
    """The changes that save most, each by itself."""

    def peak(changed: RunConfig) -> int:
        found = peak_memory(changed, device=device)
        if device == "cpu":  # where all ranks share the memory
            return found.bytes_of_all_ranks(changed.parallelism.data_parallel_size)
        return found.bytes_per_rank

    found = changes(config, peak)[:MOST_ADVICE]
    if not found:
        return "spread the run over more ranks"
    return ", ".join(f"{each.override} saves {size(each.saves_bytes)}" for each in found)


def _too_few_gpus(config: RunConfig, found: int) -> Problem:
    needed = config.parallelism.world_size
    rule = f"{plural(needed, 'GPU')} needed, one for each rank, {found} found through NVML"
    return Problem(f"launcher.device={config.launcher.device}", rule)
