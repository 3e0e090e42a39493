"""Which parameters belong together: expert groups of ranks, and groups with one weight decay.

DeepSpeed averages a parameter over all data ranks unless it is tagged as an expert's, and believes
in expert groups only if the module tree holds one of its own MoE layers. The model stays free of
both: `Trained` wraps it and carries a marker layer without parameters.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dsv3.engine.vendor import MoE
from dsv3.engine.vendor import groups as deepspeed_groups

ParameterGroup = dict[str, Any]


class ExpertMarker(MoE):  # type: ignore[misc]
    """A DeepSpeed MoE layer without parameters: says that expert groups of this size exist."""

    def __init__(self, *, num_local_experts: int, expert_parallel_size: int) -> None:
        nn.Module.__init__(self)  # not MoE's own: that one builds experts
        self.ep_size = expert_parallel_size
        self.num_local_experts = num_local_experts
        self.num_experts = num_local_experts * expert_parallel_size
        self.expert_group_name = expert_group_name(expert_parallel_size)

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """Create the expert and expert-data groups; called once by the DeepSpeed engine."""
        if self.expert_group_name not in deepspeed_groups._get_expert_parallel_group_dict():
            deepspeed_groups._create_expert_and_data_parallel(
                self.ep_size, use_data_before_expert_parallel_=use_data_before_expert_parallel_
            )


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
