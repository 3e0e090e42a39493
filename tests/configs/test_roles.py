"""The programs of all ranks of the large layouts, built without memory; together, the model."""

from collections import Counter

import pytest
import torch
from torch import nn

from dsv3.config.compose import compose
from dsv3.config.root import RunConfig
from dsv3.model.backends.torch import TorchBackend
from dsv3.model.names import is_expert
from dsv3.model.transformer import Transformer
from dsv3.parallel.dispatch import LocalDispatcher
from dsv3.parallel.mesh import place_of
from dsv3.parallel.schedule import global_part, parts_per_stage
from dsv3.plan.memory import stage_weights
from dsv3.plan.parameters import count_mtp
from dsv3.plan.stages import layer_ranges

# Report: 671B (config.json of the released weights); 228.7B of tables 4 and 5.
PUBLISHED = {"moe_228b": 228_748_416_000, "moe_671b": 671_026_404_352}
RANKS = {"moe_228b": 128, "moe_671b": 2048}
# Ranks that differ: by stage and by experts held; those of an expert's replicas are the same.
ROLES = {"moe_228b": 16 * 8, "moe_671b": 16 * 64}


def program(config: RunConfig, rank: int) -> dict[str, nn.Parameter]:
    """What the rank holds, on the meta device, by canonical name."""
    layout, experts = config.parallelism, config.model.n_routed_experts
    schedule, stages = layout.pipeline_schedule, layout.pipeline_parallel_size
    place, ranges = place_of(layout, rank), layer_ranges(config)
    with torch.device("meta"):
        model = Transformer(
            config.model,
            backend=TorchBackend(),
            dispatcher=LocalDispatcher(experts),
            parts=[
                ranges[global_part(schedule, stages, place.stage, part)]
                for part in range(parts_per_stage(schedule))
            ],
            local_experts=place.local_experts(experts),
            balance=config.balance,
            mtp=config.mtp,
        )
    found = dict(model.named_parameters())
    assert {value.device.type for value in found.values()} == {"meta"}
    return found


@pytest.mark.parametrize("schedule", ["1f1b", "dualpipev"])
@pytest.mark.parametrize("mtp", ["off", "depth1"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_roles_of_a_shipped_layout_are_the_whole_model(
    name: str, mtp: str, schedule: str
) -> None:
    config = compose(
        [f"model={name}", f"mtp={mtp}", f"parallelism.pipeline_schedule={schedule}"]
    ).config
    layout, experts = config.parallelism, config.model.n_routed_experts
    assert layout.world_size == RANKS[name]
    roles = {
        (place.stage, place.local_experts(experts))
        for place in (place_of(layout, rank) for rank in range(layout.world_size))
    }
    assert len(roles) == ROLES[name]
    held: Counter[str] = Counter()
    for stage, planned in enumerate(stage_weights(config)):
        of_stage = [local for at, local in roles if at == stage]
        # They hold the same but for which experts these are: one is built for all of them.
        assert len({len(local) for local in of_stage}) == 1
        assert sorted(e for local in of_stage for e in local) == list(range(experts))
        found = program(config, stage * layout.data_parallel_size)
        sizes = {name: value.numel() for name, value in found.items()}
        dense = sum(size for name, size in sizes.items() if not is_expert(name))
        of_experts = sum(size for name, size in sizes.items() if is_expert(name))
        assert (dense, of_experts * len(of_stage)) == (planned.dense, planned.experts)
        held.update({n: s * (len(of_stage) if is_expert(n) else 1) for n, s in sizes.items()})
    depth = config.mtp.num_nextn_predict_layers
    beside = count_mtp(config.model, depth=depth).total
    assert sum(held.values()) - beside == PUBLISHED[name]
    last = config.model.num_hidden_layers
    of_mtp = sum(size for name, size in held.items() if name.startswith(f"model.layers.{last}."))
    assert of_mtp == beside
    assert (beside > 0) == (mtp == "depth1")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_first_rank_of_dualpipev_begins_and_ends_the_model(name: str) -> None:
    config = compose([f"model={name}", "mtp=depth1"]).config
    assert config.parallelism.pipeline_schedule == "dualpipev"
    first, turn = (program(config, rank) for rank in (0, RANKS[name] - 1))
    ends = {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"}
    assert ends <= first.keys()
    assert not ends & turn.keys()
