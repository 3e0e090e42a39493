"""docs/metrics.md names every figure that a run writes."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dsv3.engine.distributed import process_group
from dsv3.train.alarms import FP8_RULES, RULES
from dsv3.train.evaluation import evaluate
from dsv3.train.loop import train_step
from numerics.small_training import training

EVERYTHING = ("balance=aux_free_seq", "mtp=depth1", "precision=fp8_block_emulated")


@pytest.fixture(scope="module")
def figures() -> Iterator[set[str]]:
    """Keys of a step's line and of an evaluation's, with everything on that adds one."""
    device = torch.device("cpu")
    with process_group(device), training(*EVERYTHING) as trainer:
        step = train_step(trainer)
        with trainer.engine.evaluating():
            found = evaluate(
                trainer.model, trainer.validation, 4, device, layers=trainer.layers, mtp_depth=1
            )
        yield {*step, *found.record()}


def test_every_figure_is_on_the_page(figures: set[str], checkout: Path) -> None:
    page = (checkout / "docs/metrics.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", page))
    assert {"loss", "max_violation_global", "mtp_acceptance", "fp8_ranges"} <= figures
    assert figures - named == set()
    assert {*RULES, *FP8_RULES} - named == set()
