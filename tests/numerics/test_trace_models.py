"""Every shipped model in its own layout, traced, against the formulas of `plan`.

The trace runs the model and its dispatcher, pipeline and mail; the formulas are written operation
by operation. Both are given the same layers and rows, and nothing else in common: a change of one
that the other does not follow shows here.
"""

import pytest

from dsv3.config.compose import compose
from dsv3.config.root import RunConfig
from dsv3.plan.memory import stage_weights
from dsv3.plan.peak import peak_memory
from dsv3.train.trace import trace
from dsv3.train.trace_program import micro_batch_shape
from dsv3.train.trace_step import MESSAGES

MODELS = ("moe_nano", "moe_tiny", "moe_1b", "moe_3b", "moe_16b", "moe_228b", "moe_671b")


FP8 = {
    # Widths of 40 and 80, which Transformer Engine does not take.
    "moe_nano": "fp8_block_emulated",
    "moe_tiny": "fp8_block_emulated",
    "moe_1b": "fp8_block",
    "moe_3b": "fp8_current",
    "moe_16b": "mxfp8",
    "moe_228b": "fp8_block",
    "moe_671b": "fp8_block",
}


@pytest.mark.parametrize("model", MODELS)
def test_a_shipped_model_is_traced_in_its_layout(model: str) -> None:
    check(compose([f"model={model}"]).config, within=0.05)


@pytest.mark.parametrize("model", MODELS)
def test_a_shipped_model_is_traced_in_fp8(model: str) -> None:
    """In steps of one micro batch where there is no pipeline: it is as full as one of many."""
    words = [f"model={model}", f"precision={FP8[model]}"]
    config = compose(words).config
    if config.parallelism.parts == 1:
        sequences, _ = micro_batch_shape(config)
        batch = sequences * config.parallelism.data_parallel_size
        words += [f"schedule.{key}={batch}" for key in ("global_batch_size", "batch_size_quantum")]
        config = compose(words).config
        assert micro_batch_shape(config)[0] == sequences
    check(config, within=0.02)


FP32_PIPELINES = {
    # As many micro batches as are under way at once: the first backward pass finds no gradients.
    "few micro batches": [
        *("model=moe_1b", "model.num_hidden_layers=3", "model.n_routed_experts=16"),
        *("schedule.sequence_length=1024", "schedule.global_batch_size=2"),
        "schedule.batch_size_quantum=2",
    ],
    # More gradients than a bucket holds: what is left waits while room for all of them is made.
    "several buckets": [
        *("model=moe_tiny", "model.moe_intermediate_size=1024"),
        *("schedule.global_batch_size=4", "schedule.batch_size_quantum=4"),
    ],
}


@pytest.mark.parametrize("words", FP32_PIPELINES.values(), ids=FP32_PIPELINES.keys())
def test_gradients_of_a_pipeline_in_fp32(words: list[str]) -> None:
    check(compose([*words, "parallelism=pp2", "precision=fp32"]).config, within=0.05)


def check(config: RunConfig, *, within: float) -> None:
    """Formulas leave out messages, and of the moments between two layers single gradients."""
    layout = config.parallelism
    found = trace(config, max_violation=0.0)
    planned = peak_memory(config, max_violation=0.0, device=found.device)
    assert len(found.stages) == layout.pipeline_parallel_size
    for stage, weights, formula in zip(
        found.stages, stage_weights(config), planned.stages, strict=True
    ):
        experts = weights.experts // layout.expert_parallel_size
        assert stage.passes.parameters == weights.dense + experts
        share = weights.dense / layout.data_parallel_size
        share += experts / layout.expert_data_parallel_size
        assert stage.passes.state["masters"] == pytest.approx(4 * share, rel=1e-4)
        # Messages on their way are in no formula, and count where little else is kept.
        without = stage.peak_bytes - stage.moment.parts[MESSAGES]
        assert (1 - within) * without <= formula.peak_bytes <= (1 + within) * stage.peak_bytes
