"""Cases about ranks: the groups DeepSpeed made, JSON between ranks, failing together."""

from typing import Any

import torch.distributed

from dsv3.checkpoint.collective import together
from dsv3.config.parallelism import ParallelismConfig
from dsv3.engine.collective import RankCollective
from dsv3.errors import CapacityError, CheckpointError


def layout(expert_parallel_size: int, world: int, *, zero_stage: int = 1) -> ParallelismConfig:
    """`world` ranks, no pipeline."""
    return ParallelismConfig.model_validate(
        {
            "pipeline_parallel_size": 1,
            "expert_parallel_size": expert_parallel_size,
            "expert_data_parallel_size": world // expert_parallel_size,
            "pipeline_schedule": "1f1b",
            "zero_stage": zero_stage,
        }
    )


def groups() -> Any:
    """Global ranks of this rank's groups, as torch has them, by expert parallel size."""
    from deepspeed.utils import groups as deepspeed_groups

    from dsv3.engine.groups import expert_group

    world = torch.distributed.get_world_size()
    found = {}
    for size in (1, 2, 4):
        if world % size == 0:
            group = expert_group(layout(size, world))
            replicas = deepspeed_groups._get_expert_data_parallel_group(f"ep_size_{size}")
            again = expert_group(layout(size, world))
            found[size] = {
                "expert": torch.distributed.get_process_group_ranks(group),
                "expert_data": torch.distributed.get_process_group_ranks(replicas),
                "made_once": again is group,
            }
    return found, {}


def collective() -> Any:
    """What comes of JSON of different lengths, and of an action that fails on the last rank."""
    ranks = RankCollective("cpu")
    last = ranks.rank == ranks.size - 1

    def fail() -> str:
        if last:
            raise CapacityError("the disk is full")
        return "fine"

    try:
        outcome = str(together(ranks, fail))
    except CheckpointError as error:
        outcome = f"checkpoint: {error}"
    except CapacityError as error:
        outcome = f"capacity: {error}"
    gathered = ranks.all_gather({"rank": ranks.rank, "text": "\u00e9" * 100 * ranks.rank})
    return {"gathered": gathered, "nothing": ranks.all_gather(None), "outcome": outcome}, {}


GROUP_CASES = {"groups": groups, "collective": collective}
