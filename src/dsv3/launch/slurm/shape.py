"""What a run asks a cluster for; it follows from the layout and from what a node has."""

from collections.abc import Iterator
from dataclasses import dataclass

from dsv3.config.root import RunConfig
from dsv3.errors import CapacityError, ConfigError, Problem
from dsv3.launch.slurm.profile import Profile
from dsv3.machine import Gpu, Machine
from dsv3.plan.capacity import check_memory
from dsv3.plan.quantities import plural

UNKNOWN_GIB = 1 << 20
"""Memory of what a profile does not say: never too small."""
_ANY_CAPABILITY = (9, 0)


@dataclass(frozen=True)
class Shape:
    """Resources of one job; runs of the same shape share an array."""

    nodes: int
    ranks_per_node: int
    gpus_per_node: int
    cpus_per_rank: int
    time: str
    parallel: int | None
    ranks_by: str
    save_seconds: int

    @property
    def ranks(self) -> int:
        """All ranks of the run."""
        return self.nodes * self.ranks_per_node


def shape_of(config: RunConfig, profile: Profile) -> Shape:
    """The shape of a run on a cluster; raises ConfigError naming both where they do not fit."""
    problems = list(_mismatches(config, profile))
    if problems:
        raise ConfigError(problems)
    launcher, world = config.launcher, config.parallelism.world_size
    per_node = min(world, profile.most_ranks_per_node)
    gpus = 0 if launcher.device == "cpu" else min(per_node, profile.gpus_per_node)
    return Shape(
        nodes=world // per_node,
        ranks_per_node=per_node,
        gpus_per_node=gpus,
        cpus_per_rank=launcher.threads_per_rank
        or profile.cpus_per_node // per_node_at_most(profile),
        time=launcher.time or profile.time,
        parallel=launcher.parallel,
        ranks_by=launcher.ranks_by,
        save_seconds=launcher.save_seconds,
    )


def per_node_at_most(profile: Profile) -> int:
    """Ranks that share out the cores of a full node, so that a rank has as many on any."""
    return min(profile.most_ranks_per_node, profile.cpus_per_node)


def refuse_too_small(config: RunConfig, profile: Profile) -> None:
    """Raise CapacityError if nodes of the cluster, as described, cannot hold the run."""
    shape = shape_of(config, profile)
    memory = (profile.memory_gib_per_node or UNKNOWN_GIB) * 2**30
    gpu_memory = int((profile.gpu_memory_gib or UNKNOWN_GIB) * 2**30)
    gpu = Gpu(profile.gpu_type or "GPU", gpu_memory, _ANY_CAPABILITY)
    machine = Machine(
        gpus=(gpu,) * (shape.nodes * shape.gpus_per_node),
        cores=shape.nodes * profile.cpus_per_node,
        memory_bytes=int(memory) * shape.nodes,
        gpu_driver=None,
    )
    try:
        check_memory(config, machine)
    except CapacityError as error:
        told = [problem for problem in error.problems if "this machine" not in problem.rule]
        setting = f"launcher.profile={config.launcher.profile}"
        where = Problem(setting, f"{plural(shape.nodes, 'node')} of it would be asked for")
        raise CapacityError([*told, where]) from None


def _mismatches(config: RunConfig, profile: Profile) -> Iterator[Problem]:
    launcher, layout = config.launcher, config.parallelism
    ours = f"launcher.profile={launcher.profile}"
    world, most = layout.world_size, profile.most_ranks_per_node
    asked = (
        f"parallelism: {plural(world, 'rank')}"
        f" (pipeline_parallel_size={layout.pipeline_parallel_size}"
        f" x expert_parallel_size={layout.expert_parallel_size}"
        f" x expert_data_parallel_size={layout.expert_data_parallel_size})"
    )
    if world > most and world % most:
        rule = f"must be a multiple of the {plural(most, 'rank')} that a node of {ours} has"
        yield Problem(asked, rule, "choose another layout, or lower the profile's ranks_per_node")
    elif profile.max_nodes is not None and world > most * profile.max_nodes:
        rule = f"does not fit {plural(profile.max_nodes, 'node')} of {most} (max_nodes of {ours})"
        yield Problem(asked, rule, "choose a smaller layout")
    if profile.gpus_per_node and launcher.device != "cpu" and most > profile.gpus_per_node:
        rule = f"exceeds its gpus_per_node={profile.gpus_per_node}: a rank has a GPU of its own"
        yield Problem(f"{ours}: ranks_per_node={most}", rule, "or write launcher.device=cpu")
    if launcher.device == "cuda" and not profile.gpus_per_node:
        rule = f"needs GPUs, and {ours} has gpus_per_node=0"
        yield Problem("launcher.device=cuda", rule, "name another profile, or write device=auto")
    threads, ranks = launcher.threads_per_rank, min(world, most)
    if threads is not None and threads * ranks > profile.cpus_per_node:
        rule = f"x {plural(ranks, 'rank')} exceeds cpus_per_node={profile.cpus_per_node} of {ours}"
        yield Problem(f"launcher.threads_per_rank={threads}", rule, "write a smaller number")
    elif threads is None and ranks > profile.cpus_per_node:
        rule = f"has cpus_per_node={profile.cpus_per_node}, too few for {plural(ranks, 'rank')}"
        yield Problem(f"{ours}", rule, "lower its ranks_per_node")
