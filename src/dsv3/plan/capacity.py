"""Can this machine hold the run? Asked before anything is prepared, started or written."""

from typing import Literal

from dsv3.config.root import RunConfig
from dsv3.errors import CapacityError, Problem
from dsv3.machine import Machine
from dsv3.plan.description import describe
from dsv3.plan.memory import StateBytes, state_bytes_of_all_ranks, state_bytes_per_rank
from dsv3.plan.quantities import plural, size
from dsv3.plan.te_capacity import check_transformer_engine

GO_ON = (
    "`dsv3 plan` with the same overrides shows what it takes, `dsv3 train ... --dry-run` what"
    " would run; model=moe_tiny trains on any machine"
)


def check_capacity(config: RunConfig, machine: Machine) -> None:
    """Raise CapacityError if the state alone, without activations, exceeds what `machine` has.

    On GPUs every rank needs one of its own; on a CPU all ranks share the memory. Also raised where
    Transformer Engine cannot run the precision recipe.
    """
    check_transformer_engine(config, machine)
    state = state_bytes_per_rank(config)
    in_all = state_bytes_of_all_ranks(config)
    if device_kind(config, machine) == "cuda":
        problems = _gpu_problems(config, machine, state)
    else:
        problems = _cpu_problems(config, machine, in_all)
    if problems:
        needs = Problem(f"model={config.model.name}", _needs(config, state, in_all))
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


def _needs(config: RunConfig, state: StateBytes, in_all: int) -> str:
    return (
        f"{str(describe(config)).removeprefix(f'{config.model.name}: ')};"
        f" per rank {size(state.weights)} of weights + {size(state.gradients)} of gradients"
        f" + {size(state.optimizer)} of optimizer state = {size(state.total)},"
        f" {size(in_all)} over all ranks, without activations"
    )


def _gpu_problems(config: RunConfig, machine: Machine, state: StateBytes) -> list[Problem]:
    problems = []
    needed, found = config.parallelism.world_size, len(machine.gpus)
    if found < needed:
        problems.append(_too_few_gpus(config, found))
    smallest = min((gpu.memory_bytes for gpu in machine.gpus[:needed]), default=None)
    if smallest is not None and smallest < state.total:
        rule = f"a rank needs {size(state.total)}, a GPU here has {size(smallest)}"
        problems.append(Problem("memory per GPU", rule, "spread the run over more ranks"))
    return problems


def _cpu_problems(config: RunConfig, machine: Machine, in_all: int) -> list[Problem]:
    if in_all <= machine.memory_bytes:
        return []
    rule = f"all ranks together need {size(in_all)}, there is {size(machine.memory_bytes)}"
    return [Problem("memory", rule), _too_few_gpus(config, len(machine.gpus))]


def _too_few_gpus(config: RunConfig, found: int) -> Problem:
    needed = config.parallelism.world_size
    rule = f"{plural(needed, 'GPU')} needed, one for each rank, {found} found through NVML"
    return Problem(f"launcher.device={config.launcher.device}", rule)
