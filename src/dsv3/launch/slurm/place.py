"""Which rank a process is, from the variables of Slurm, or of a torchrun that Slurm started."""

from collections.abc import Mapping
from dataclasses import dataclass

from dsv3.errors import ConfigError, Problem

_OF_SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_MEETING = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class RankPlace:
    """A rank, and where all ranks meet; `store` is `serve` if rank 0 serves that place."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master: str
    port: int
    store: str

    def variables(self) -> dict[str, str]:
        """As every launcher of torch programs sets them; a rank that is alone meets nobody."""
        local = {
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
        }
        if self.world_size == 1:
            return local
        return local | {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "MASTER_ADDR": self.master,
            "MASTER_PORT": str(self.port),
        }


def place_from(environment: Mapping[str, str], *, world_size: int) -> RankPlace:
    """This process' place among the `world_size` ranks of the run.

    Raises ConfigError naming every variable that is missing, or if the job has another number of
    ranks: nothing is guessed.
    """
    by_torchrun = "TORCHELASTIC_RUN_ID" in environment
    names = _OF_TORCHRUN if by_torchrun else _OF_SLURM
    missing = [name for name in (*names, *_MEETING) if not environment.get(name)]
    if missing:
        rule = "the job's script and srun set it; without it the ranks cannot meet"
        raise ConfigError([Problem(f"{name} is not set", rule) for name in missing])
    rank, world, local = (int(environment[name]) for name in names)
    if world != world_size:
        rule = f"the layout of the run has {world_size}"
        raise ConfigError(Problem(f"{names[1]}={world}", rule, "ask for the run again"))
    # The agent of torchrun serves the store of its ranks.
    served = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return RankPlace(
        rank=rank,
        world_size=world,
        local_rank=local,
        local_world_size=_local_world_size(environment, world, by_torchrun=by_torchrun),
        master=environment["MASTER_ADDR"],
        port=int(environment["MASTER_PORT"]),
        store="join" if served else "serve",
    )


def _local_world_size(environment: Mapping[str, str], world: int, *, by_torchrun: bool) -> int:
    if by_torchrun:
        return int(environment["LOCAL_WORLD_SIZE"])
    # `2(x3)` for three nodes of two each; all nodes of a job of ours have the same number.
    each = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE")
    return int(each.partition("(")[0].partition(",")[0]) if each else world
