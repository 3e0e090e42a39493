"""Bytes between ranks and seconds of a step, against counts made another way."""

import itertools
import random

import pytest

from dsv3.config.compose import compose
from dsv3.config.hardware import load_hardware
from dsv3.config.root import RunConfig
from dsv3.parallel.schedule import simulate
from dsv3.plan.chunk_time import LayerTimes
from dsv3.plan.communication import Traffic, exchange, reached_nodes
from dsv3.plan.flops import dense_layer_flops_per_token
from dsv3.plan.step_time import Clock

H800 = load_hardware("h800")


def config(*overrides: str) -> RunConfig:
    return compose(list(overrides)).config


def test_a_token_of_v3_reaches_four_of_eight_nodes() -> None:
    model = config("model=moe_671b").model
    assert reached_nodes(model, 8) == 4
    assert reached_nodes(model, 1) == 1


def test_reached_nodes_without_groups_by_drawing() -> None:
    model = config("model=moe_16b").model
    assert model.topk_group == model.n_group
    draw = random.Random(1)
    drawn = [
        len({expert // 16 for expert in draw.sample(range(64), model.num_experts_per_tok)})
        for _ in range(20_000)
    ]
    assert reached_nodes(model, 4) == pytest.approx(sum(drawn) / len(drawn), rel=5e-3)


def test_reached_nodes_with_two_groups_a_node_by_listing() -> None:
    model = config("model=moe_671b").model
    choices = list(itertools.combinations(range(8), 4))
    nodes = [len({group // 2 for group in chosen}) for chosen in choices]
    assert reached_nodes(model, 4) == pytest.approx(sum(nodes) / len(nodes))


def test_rows_of_an_exchange_counted_one_by_one() -> None:
    """64 experts on 16 ranks in two nodes: where a token's rows go, over every place it may be."""
    run = config("model=moe_16b", "parallelism=ep16", "precision=bf16")
    found = exchange(run, H800, tokens=1)
    width, top_k = run.model.hidden_size, run.model.num_experts_per_tok
    away = [0.0, 0.0]  # within the node, between nodes
    for expert in range(64):
        rank = expert // 4
        away[0] += (rank != 0) and (rank // 8 == 0)
        away[1] += rank // 8 != 0
    row = 4 * width * 2 + 2 * 4  # four messages in BF16, two with the gate value
    assert found.node == pytest.approx(top_k * away[0] / 64 * row)
    assert found.network == pytest.approx(top_k * away[1] / 64 * row)


def test_fp8_narrows_the_ways_to_the_experts_only() -> None:
    words = ["model=moe_671b", "precision=bf16"]
    wide = exchange(config(*words), H800, tokens=4096)
    narrow = exchange(config(*words, "precision.dispatch=fp8"), H800, tokens=4096)
    width = 7168
    expected = (2 * (width + width // 128 * 4 + 2 * width) + 8) / (8 * width + 8)
    assert narrow.network / wide.network == pytest.approx(expected)


def test_once_to_each_node_is_less_over_the_network() -> None:
    run = config("model=moe_671b")
    each = exchange(run, H800, tokens=4096)
    once = exchange(run, H800, tokens=4096, once_per_node=True)
    assert once.network == pytest.approx(each.network / 2)  # 4 nodes instead of 8 experts
    assert once.node > each.node


def test_the_slower_link_decides() -> None:
    assert Traffic(160e9, 0).seconds(H800) == 1.0
    assert Traffic(160e9, 80e9).seconds(H800) == 2.0


def test_a_dense_layer_takes_its_flops_over_the_rate() -> None:
    run = config("model=moe_228b", "precision=bf16", "recompute=none")
    found = LayerTimes(run, H800, tokens=4096).dense
    operations = dense_layer_flops_per_token(run.model, sequence_length=4096) * 4096
    # The count has the norms' weights as well, a ten-thousandth.
    seconds = operations / (0.5 * 989.4e12)
    assert found.forward + found.backward == pytest.approx(seconds, rel=1e-3)
    assert found.backward == pytest.approx(2 * found.forward)


def test_recomputation_costs_time() -> None:
    clocks = [
        Clock(config("model=moe_228b", f"recompute={policy}"), H800).step(9216).total
        for policy in ("none", "norm_and_up_projection", "moe", "full")
    ]
    assert clocks == sorted(clocks) and len(set(clocks)) == 4


@pytest.mark.parametrize("schedule", ["1f1b", "dualpipev"])
def test_a_step_is_the_simulated_one_where_parts_are_alike(schedule: str) -> None:
    run = config(
        "model=moe_nano",
        "parallelism=pp2",
        f"parallelism.pipeline_schedule={schedule}",
        "schedule.micro_batch_size=1",
    )
    clock = Clock(run, H800)
    step = clock.step(8)
    parts = clock._parts(1)
    longest = max(parts, key=lambda part: part.forward + part.backward)
    alike = simulate(schedule, 2, 8, longest.forward, longest.backward)  # type: ignore[arg-type]
    idle = max(alike.bubbles_s)
    assert step.bubble == pytest.approx(idle)
    total = step.compute + step.exchange + step.bubble + step.reduction + step.optimizer
    assert step.total == total


def test_a_run_is_all_of_its_steps() -> None:
    run = config("model=moe_671b")
    clock, schedule = Clock(run, H800), run.schedule
    found = clock.run()
    seconds = sum(s.steps * clock.step(s.batch_size).total for s in schedule.stretches)
    assert found.seconds == pytest.approx(seconds)
    assert found.gpu_hours == pytest.approx(seconds * 2048 / 3600)
