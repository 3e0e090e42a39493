"""Which parameters belong together: expert groups of ranks, and groups with one weight decay.

DeepSpeed averages a parameter over all data ranks unless it is tagged as an expert's, and believes
in expert groups only if the module tree holds one of its own MoE layers. The model stays free of
both: `Trained` wraps it and carries a marker layer without parameters. The groups of ranks are made
before the model, by `expert_group`, because the model's dispatcher needs one of them.
"""

import contextlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed
from torch import nn

from dsv3.config.parallelism import ParallelismConfig
from dsv3.engine.vendor import MoE, PipeDataParallelTopology, PipelineParallelGrid
from dsv3.engine.vendor import groups as deepspeed_groups
from dsv3.parallel.mesh import place_of

ParameterGroup = dict[str, Any]


def expert_group(layout: ParallelismConfig) -> torch.distributed.ProcessGroup:
    """The ranks that together hold one replica of all experts, this one among them.

    The first call since `distributed.start` creates this group and the expert-data groups of
    DeepSpeed (collective); later ones return it.
    """
    name = expert_group_name(layout.expert_parallel_size)
    if name not in deepspeed_groups._get_expert_parallel_group_dict():
        deepspeed_groups._create_expert_and_data_parallel(
            layout.expert_parallel_size, pp_size=layout.pipeline_parallel_size
        )
    world = torch.distributed.get_world_size()
    assert world == layout.world_size, f"{world=} {layout.world_size=}"
    place = place_of(layout, torch.distributed.get_rank())
    # The order in the group says which experts a rank holds, so a wrong one trains wrong experts.
    for ranks, expected in (
        (deepspeed_groups._get_expert_parallel_group_ranks(name), place.expert_ranks),
        (deepspeed_groups._get_expert_data_parallel_group_ranks(name), place.expert_data_ranks),
    ):
        assert list(ranks) == list(expected), f"{name} {ranks=} {expected=}"
    group: torch.distributed.ProcessGroup = deepspeed_groups._get_expert_parallel_group(name)
    return group


def stage_grid(layout: ParallelismConfig) -> PipelineParallelGrid | None:
    """DeepSpeed's view of the stages, which it needs to find the data ranks of each (collective).

    None without a pipeline.
    """
    if layout.pipeline_parallel_size == 1:
        return None
    topology = PipeDataParallelTopology(
        num_pp=layout.pipeline_parallel_size, num_dp=layout.data_parallel_size
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the topology
        grid = PipelineParallelGrid(topology=topology)
    place = place_of(layout, torch.distributed.get_rank())
    data_ranks = torch.distributed.get_process_group_ranks(grid.get_data_parallel_group())
    assert data_ranks == list(place.data_ranks), f"{data_ranks=} {place.data_ranks=}"
    return grid


def pipeline_lanes(
    layout: ParallelismConfig, names: Sequence[str]
) -> dict[str, torch.distributed.ProcessGroup]:
    """A group of this rank's pipeline for each of `names` (collective)."""
    place = place_of(layout, torch.distributed.get_rank())
    ranks = list(place.pipeline_ranks)
    return {
        name: torch.distributed.new_group(ranks, use_local_synchronization=True) for name in names
    }


class ExpertMarker(MoE):  # type: ignore[misc]
    """A DeepSpeed MoE layer without parameters: says that expert groups of this size exist."""

    def __init__(self, *, num_local_experts: int, expert_parallel_size: int) -> None:
        nn.Module.__init__(self)  # not MoE's own: that one builds experts
        self.ep_size = expert_parallel_size
        self.num_local_experts = num_local_experts
        self.num_experts = num_local_experts * expert_parallel_size
        self.expert_group_name = expert_group_name(expert_parallel_size)

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """Called by the DeepSpeed engine, for layers to create their groups: they exist."""
        assert self.expert_group_name in deepspeed_groups._get_expert_parallel_group_dict()


class Trained(nn.Module):
    """The module DeepSpeed sees: the model, and beside it the marker of its expert groups."""

    def __init__(self, model: nn.Module, marker: ExpertMarker | None) -> None:
        super().__init__()
        self.model = model
        self.marker = marker

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Return what the model returns."""
        return self.model(*inputs)


def expert_group_name(expert_parallel_size: int) -> str:
    """Name of the groups that hold one replica of all experts, as DeepSpeed spells it."""
    return f"ep_size_{expert_parallel_size}"


def wrap(
    model: nn.Module, *, expert_parallel_size: int, expert_parameter: Callable[[str], bool]
) -> Trained:
    """Tag the model's expert parameters and put the marker beside it, if it has experts.

    With one expert rank the experts form their own group too, so that one rank and many take the
    same path through DeepSpeed.
    """
    experts = [p for name, p in model.named_parameters() if expert_parameter(name)]
    for parameter in experts:
        parameter.allreduce = False  # type: ignore[attr-defined]
        parameter.group_name = expert_group_name(expert_parallel_size)  # type: ignore[attr-defined]
    if not experts:
        return Trained(model, None)
    return Trained(
        model,
        ExpertMarker(
            num_local_experts=experts[0].shape[0], expert_parallel_size=expert_parallel_size
        ),
    )


def is_expert(parameter: torch.Tensor) -> bool:
    """Whether `wrap` tagged this parameter as an expert's."""
    return not getattr(parameter, "allreduce", True)


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[ParameterGroup]:
    """Split the parameters by weight decay (none for vectors, i.e. norms) and by expert group.

    ZeRO wants `name` in every group, and in those of experts also `moe` and the name of the ranks'
    group.
    """
    by_key: dict[tuple[str, bool], ParameterGroup] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        decayed = parameter.ndim > 1
        name = str(parameter.group_name) if is_expert(parameter) else _dense_name(decayed)  # type: ignore[attr-defined]
        group = by_key.setdefault(
            (name, decayed),
            {"params": [], "name": name, "weight_decay": weight_decay if decayed else 0.0},
        )
        if is_expert(parameter):
            group["moe"] = True
        group["params"].append(parameter)
    return list(by_key.values())


def _dense_name(decayed: bool) -> str:
    return "dense_decayed" if decayed else "dense_not_decayed"
