"""The pipeline of a run: the parts of the model that a rank holds, and the model across ranks."""

from functools import partial

import torch
from torch import Tensor

from dsv3.config.root import RunConfig
from dsv3.engine.groups import pipeline_lanes
from dsv3.model.transformer import Transformer
from dsv3.parallel.mail import Mail
from dsv3.parallel.mesh import Place
from dsv3.parallel.pipeline import Pipeline, Route, lanes
from dsv3.parallel.schedule import actions, global_part, holder, parts_per_stage
from dsv3.plan.stages import layer_ranges


def parts_held(config: RunConfig, stage: int) -> list[int]:
    """The parts that the ranks of a stage hold, by their numbers in the model."""
    layout = config.parallelism
    schedule, stages = layout.pipeline_schedule, layout.pipeline_parallel_size
    held = range(parts_per_stage(schedule))
    return [global_part(schedule, stages, stage, part) for part in held]


def layers_held(config: RunConfig, stage: int) -> list[range]:
    """The blocks of each of these parts."""
    ranges = layer_ranges(config)
    return [ranges[number] for number in parts_held(config, stage)]


def build_pipeline(
    model: Transformer, config: RunConfig, place: Place, device: torch.device
) -> Pipeline | None:
    """The pipeline this rank is in (collective); None if every rank holds the whole model."""
    layout = config.parallelism
    if layout.parts == 1:
        return None
    schedule, stages = layout.pipeline_schedule, layout.pipeline_parallel_size
    has_mtp = config.mtp.num_nextn_predict_layers > 0
    held = parts_held(config, place.stage)
    route = Route(
        parts=tuple(held),
        last=layout.parts - 1,
        has_mtp=has_mtp,
        hidden_size=config.model.hidden_size,
        dtype=next(model.parameters()).dtype,
    )
    holders = [
        place.pipeline_ranks[holder(schedule, stages, number)[0]] for number in range(layout.parts)
    ]
    groups = pipeline_lanes(layout, lanes(len(held), has_mtp=has_mtp))
    mail = Mail(holders, place.rank, groups, device)
    order = partial(actions, schedule, stages, stage=place.stage)
    return Pipeline(model, route, mail, actions=order)


class PipelinedModel:
    """A model that the ranks of a pipeline hold together, for passes without a gradient.

    Every rank of the pipeline asks for the same; the answer is with the one that holds the end of
    the model, and zero on the others.
    """

    def __init__(self, model: Transformer, pipeline: Pipeline) -> None:
        self._model = model
        self._pipeline = pipeline

    def token_losses(self, input_ids_BS: Tensor, labels_BS: Tensor) -> Tensor:
        """Cross entropy of every label, FP32 [B, S]."""
        found = self._pipeline.infer(input_ids_BS)
        if found is None:
            return torch.zeros(labels_BS.shape, dtype=torch.float32, device=labels_BS.device)
        return self._model.token_losses_of(found[0], labels_BS)

    def mtp_acceptance(self, input_ids_BS: Tensor) -> Tensor:
        """Share of agreement of each MTP module with the main model, FP32 [D]."""
        found = self._pipeline.infer(input_ids_BS)
        if found is None:
            return torch.zeros(self._model.mtp_depth, device=input_ids_BS.device)
        return self._model.mtp_acceptance_of(*found)

    def route(self, input_ids_BS: Tensor) -> None:
        """Run every MoE layer for its counters alone, those of MTP modules too."""
        found = self._pipeline.infer(input_ids_BS)
        if found is not None:
            self._model.route_mtp(*found)
