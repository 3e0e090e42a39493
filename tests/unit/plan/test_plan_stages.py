"""Layers of each part: all of them, in order, by cost."""

import pytest

from dsv3.config.compose import compose
from dsv3.config.root import RunConfig
from dsv3.plan.flops import (
    dense_layer_flops_per_token,
    head_flops_per_token,
    moe_layer_flops_per_token,
    mtp_flops_per_token,
    training_flops_per_token,
)
from dsv3.plan.stages import layer_ranges


def run(*overrides: str) -> RunConfig:
    return compose(list(overrides)).config


def costs(config: RunConfig) -> list[int]:
    """FLOPs of each layer with the end of the model in the last, one by one."""
    model, length = config.model, config.schedule.sequence_length
    dense = dense_layer_flops_per_token(model, sequence_length=length)
    moe = moe_layer_flops_per_token(model, sequence_length=length)
    layers = range(model.num_hidden_layers)
    found = [dense if layer < model.first_k_dense_replace else moe for layer in layers]
    depth = config.mtp.num_nextn_predict_layers
    found[-1] += mtp_flops_per_token(model, sequence_length=length, depth=depth)
    found[-1] += head_flops_per_token(model)
    return found


@pytest.mark.parametrize("model", ["moe_nano", "moe_16b", "moe_228b", "moe_671b"])
def test_layers_and_the_end_cost_what_the_model_does(model: str) -> None:
    config = run(f"model={model}", "mtp=off")
    length = config.schedule.sequence_length
    assert sum(costs(config)) == training_flops_per_token(config.model, sequence_length=length)


@pytest.mark.parametrize("mtp", ["off", "depth1"])
@pytest.mark.parametrize("schedule", ["1f1b", "dualpipev"])
@pytest.mark.parametrize("model", ["moe_228b", "moe_671b"])
def test_the_large_layouts_are_cut_as_evenly_as_their_end_allows(
    model: str, schedule: str, mtp: str
) -> None:
    config = run(f"model={model}", f"mtp={mtp}", f"parallelism.pipeline_schedule={schedule}")
    found, cost = layer_ranges(config), costs(config)
    assert [layer for part in found for layer in part] == list(
        range(config.model.num_hidden_layers)
    )
    assert len(found) == (32 if schedule == "dualpipev" else 16)
    mean, largest = sum(cost) / len(found), max(cost)
    # No cut is below the mean or the costliest layer; whole layers cost at most one more than it.
    most = max(sum(cost[layer] for layer in part) for part in found)
    assert max(mean, largest) <= most < max(mean, largest) + cost[-2]


def test_the_head_and_mtp_shorten_the_last_part() -> None:
    ends = {
        mtp: layer_ranges(run("model=moe_228b", f"mtp={mtp}", "parallelism.pipeline_schedule=1f1b"))
        for mtp in ("off", "depth1")
    }
    assert [len(ends[mtp][-1]) for mtp in ("off", "depth1")] == [2, 1]


def test_one_part_holds_every_layer() -> None:
    assert layer_ranges(run("model=moe_tiny")) == [range(6)]
