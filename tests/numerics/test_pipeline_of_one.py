"""One rank that holds both halves of a V runs every message, and computes the same bits."""

from collections.abc import Iterator

import pytest
import torch

from dsv3.engine.distributed import process_group
from dsv3.parallel.pipeline import continued
from dsv3.train.evaluation import evaluate
from dsv3.train.loop import Trainer, train_step
from dsv3.train.stages import PipelinedModel
from faults.small_run import CLOCKED
from numerics.poison import differing, everything
from numerics.small_training import training

STEPS = 3
MORE = [
    "model.num_hidden_layers=5",
    "schedule.global_batch_size=8",
    "schedule.batch_size_quantum=8",
    "schedule.micro_batch_size=1",
    "schedule.total_tokens=768",
]
ARMS = {
    "aux_free": ["balance=aux_free", "mtp=depth1"],
    "two MTP modules": ["balance=aux_free", "mtp=depth1", "mtp.num_nextn_predict_layers=2"],
    "aux_batch": ["balance=aux_batch", "mtp=depth1"],
    "bf16": ["balance=aux_free", "mtp=depth1", "precision=bf16"],
}


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    with process_group("cpu"):
        yield


def run(trainer: Trainer) -> tuple[list[dict], dict, dict]:
    """The lines of some steps, an evaluation after them, everything training goes on from."""
    lines = [train_step(trainer) for _ in range(STEPS)]
    lines = [{k: v for k, v in line.items() if k not in CLOCKED} for line in lines]
    depth = trainer.config.mtp.num_nextn_predict_layers
    with trainer.engine.evaluating():
        found = evaluate(
            trainer.model,
            trainer.validation,
            2,
            trainer.device,
            layers=trainer.layers,
            ranks=trainer.ranks,
            mtp_depth=depth,
        )
    return lines, found.figures(), everything(trainer)


@pytest.mark.parametrize("arm", ARMS)
def test_parts_and_messages_change_no_bit(arm: str) -> None:
    with training(*MORE, *ARMS[arm]) as whole:
        expected = run(whole)
    with training(*MORE, *ARMS[arm], "parallelism.pipeline_schedule=dualpipev") as parts:
        assert isinstance(parts.model, PipelinedModel)
        assert len(parts.engine.module.parts) == 2
        found = run(parts)
    if arm == "aux_batch":  # the balance loss of each part is summed by itself
        for ours, theirs in zip(found[0], expected[0], strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
            assert ours["balance_loss"] == pytest.approx(theirs["balance_loss"], rel=1e-6)
            assert ours["max_violation"] == theirs["max_violation"]
        return
    assert found[0] == expected[0]
    assert found[1] == expected[1]
    assert differing(found[2], expected[2]) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_goes_on_to_the_last_bit(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    value = torch.randn(3, 4, generator=draw).to(dtype).requires_grad_()
    gradient = torch.randn(3, 4, generator=draw).to(dtype)
    root = continued(value, gradient)
    assert float(root) == 0
    root.backward()
    assert value.grad is not None
    assert torch.equal(value.grad, gradient)
