"""Every shipped model in its own layout, traced, against the formulas of `plan`.

The trace runs the model and its dispatcher, pipeline and mail; the formulas are written operation
by operation. Both are given the same layers and rows, and nothing else in common: a change of one
that the other does not follow shows here.
"""

import pytest

from dsv3.config.compose import compose
from dsv3.plan.memory import stage_weights
from dsv3.plan.peak import peak_memory
from dsv3.train.trace import trace
from dsv3.train.trace_step import MESSAGES

MODELS = ("moe_nano", "moe_tiny", "moe_1b", "moe_3b", "moe_16b", "moe_228b", "moe_671b")


@pytest.mark.parametrize("model", MODELS)
def test_a_shipped_model_is_traced_in_its_layout(model: str) -> None:
    config = compose([f"model={model}"]).config
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
        assert 0.95 * without <= formula.peak_bytes <= 1.05 * stage.peak_bytes
