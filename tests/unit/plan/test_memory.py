"""Bytes per rank against a rank that holds its tensors one by one."""

import math

import pytest

from dsv3.config.compose import compose
from dsv3.config.root import RunConfig
from dsv3.plan.memory import (
    stage_weights,
    state_bytes_of_all_ranks,
    state_bytes_per_rank,
)
from dsv3.plan.parameters import count_parameters

# moe_nano: pieces written out from its sizes (128 wide, 4 heads, 16 experts of 48, 1024 tokens).
EMBEDDING = HEAD = 1024 * 128
ATTENTION = 128 * 4 * 32 + 128 * (32 + 8) + 32 + 32 * 4 * (24 + 32) + 4 * 32 * 128
NORMS = 2 * 128
DENSE_FFN = 3 * 128 * 352
EXPERT = 3 * 128 * 48
ROUTER = 128 * 16


def nano(*overrides: str) -> RunConfig:
    # A batch that every layout here divides.
    batch = ("schedule.global_batch_size=64", "schedule.micro_batch_size=1")
    batch += ("schedule.batch_size_quantum=64",)
    return compose(["model=moe_nano", *batch, *overrides]).config


def layout(pipeline: int, expert: int, replicas: int) -> list[str]:
    return [
        f"parallelism.pipeline_parallel_size={pipeline}",
        f"parallelism.expert_parallel_size={expert}",
        f"parallelism.expert_data_parallel_size={replicas}",
    ]


def test_one_rank_holds_everything() -> None:
    config = nano()
    weights = count_parameters(config.model).total
    state = state_bytes_per_rank(config)
    assert (state.weights, state.gradients, state.optimizer) == (
        4 * weights,
        4 * weights,
        12 * weights,
    )
    assert state_bytes_of_all_ranks(config) == state.total == 20 * weights


def test_layers_are_not_counted_one_by_one() -> None:
    config = nano("model.num_hidden_layers=1000000000", "model.first_k_dense_replace=3")
    shallow = nano("model.num_hidden_layers=4", "model.first_k_dense_replace=3")
    counts = count_parameters(config.model)
    more = (10**9 - 4) * counts.moe_layer
    assert state_bytes_per_rank(config).weights == (
        state_bytes_per_rank(shallow).weights + 4 * more
    )


def test_bf16_halves_the_weights_only() -> None:
    fp32, bf16 = state_bytes_per_rank(nano()), state_bytes_per_rank(nano("precision=bf16"))
    assert 2 * bf16.weights == fp32.weights
    assert (bf16.gradients, bf16.optimizer) == (fp32.gradients, fp32.optimizer)


def test_bf16_moments_save_two_bytes_each() -> None:
    exact = state_bytes_per_rank(nano())
    rounded = state_bytes_per_rank(nano("optimizer.moment_dtype=bf16"))
    assert 12 * rounded.optimizer == 8 * exact.optimizer
    assert (rounded.weights, rounded.gradients) == (exact.weights, exact.gradients)


@pytest.mark.parametrize(("expert", "replicas"), [(1, 2), (2, 1), (2, 2), (4, 2), (16, 1)])
@pytest.mark.parametrize("zero_stage", [1, 2])
def test_zero_shards_dense_over_all_ranks_and_experts_over_their_replicas(
    expert: int, replicas: int, zero_stage: int
) -> None:
    config = nano(*layout(1, expert, replicas), f"parallelism.zero_stage={zero_stage}")
    dense = EMBEDDING + HEAD + 128 + 4 * (ATTENTION + NORMS) + DENSE_FFN + 3 * (ROUTER + EXPERT)
    experts = 3 * 16 * EXPERT // expert
    optimizer = math.ceil(dense / (expert * replicas)) + math.ceil(experts / replicas)
    state = state_bytes_per_rank(config)
    assert state.weights == 4 * (dense + experts)
    assert state.optimizer == 12 * optimizer
    assert state.gradients == 4 * (optimizer if zero_stage == 2 else dense + experts)
    assert state_bytes_of_all_ranks(config) == expert * replicas * state.total


def test_a_pipeline_keeps_the_embedding_first_and_the_head_last() -> None:
    stages = stage_weights(nano(*layout(4, 1, 1)))
    moe = ATTENTION + NORMS + ROUTER + EXPERT
    assert [stage.dense for stage in stages] == [
        EMBEDDING + ATTENTION + NORMS + DENSE_FFN,
        moe,
        moe,
        moe + 128 + HEAD,
    ]
    assert [stage.experts for stage in stages] == [0, *[16 * EXPERT] * 3]


def test_the_largest_stage_is_the_one_reported() -> None:
    config = nano(*layout(4, 1, 1))
    assert state_bytes_per_rank(config).weights == 4 * (
        ATTENTION + NORMS + ROUTER + 17 * EXPERT + 128 + HEAD
    )
    assert state_bytes_of_all_ranks(config) == state_bytes_of_all_ranks(nano())


def test_a_rank_of_dualpipev_holds_an_early_and_a_late_part() -> None:
    """Four parts of one layer each: the first rank has embedding and head, the second the turn."""
    stages = stage_weights(nano(*layout(2, 1, 1), "parallelism.pipeline_schedule=dualpipev"))
    moe = ATTENTION + NORMS + ROUTER + EXPERT
    dense = ATTENTION + NORMS + DENSE_FFN
    assert [stage.dense for stage in stages] == [EMBEDDING + dense + moe + 128 + HEAD, 2 * moe]
    assert [stage.experts for stage in stages] == [16 * EXPERT, 2 * 16 * EXPERT]


def test_stages_hold_the_whole_model() -> None:
    for name in ("moe_228b", "moe_671b"):
        for schedule in ("1f1b", "dualpipev"):
            config = compose([f"model={name}", f"parallelism.pipeline_schedule={schedule}"]).config
            stages = stage_weights(config)
            assert len(stages) == 16
            held = sum(stage.dense + stage.experts for stage in stages)
            assert held == count_parameters(config.model).total
