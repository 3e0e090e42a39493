"""A NaN or infinity at any of 15 places: no update, and the run goes on as if the batch were not.

Fault F20 and F21 on one rank; two ranks are in tests/distributed.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch

from dsv3.engine.distributed import process_group
from dsv3.errors import NumericHealthError
from dsv3.train.loop import Trainer, train_step
from numerics.poison import GRADIENTS, NAMED, SITES, differing, everything, poisoned
from numerics.small_training import training

ARMS = {
    # Two micro batches, moments, biases and the MTP module in play.
    "fp32 zero1": ["balance=aux_free_seq", "parallelism.zero_stage=1"],
    "bf16 zero2": ["balance=aux_free_seq", "precision=bf16", "parallelism.zero_stage=2"],
    "previous_step": ["balance=aux_batch", "balance.batch_counts=previous_step"],
}
MORE = ["mtp=depth1", "schedule.micro_batch_size=2", "health.largest_skips=1"]


@pytest.fixture(scope="module", params=ARMS)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Trainer, Trainer]]:
    """Two trainers of the same run, three steps old; the second is given no fault."""
    torch.set_num_threads(1)
    overrides = [*ARMS[request.param], *MORE, "health.on_non_finite=skip"]
    with ExitStack() as stack:
        stack.enter_context(process_group(torch.device("cpu")))
        trainers = [stack.enter_context(training(*overrides)) for _ in range(2)]
        for _ in range(3):
            first, second = map(train_step, trainers)
        assert first["loss"] == second["loss"]
        yield trainers[0], trainers[1]


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("site", SITES)
def test_a_skipped_step_changes_nothing_but_the_position(
    pair: tuple[Trainer, Trainer], site: str, value: float
) -> None:
    trainer, twin = pair
    before, position = everything(trainer), trainer.position
    with poisoned(trainer.model, site, value) as poison:
        line = train_step(trainer)
    assert poison.fired > 0
    assert differing(everything(trainer), before) == []
    assert line["skipped"] is True
    assert trainer.position == position.after_step(trainer.config.schedule)
    assert (line["step"], line["tokens"]) == (trainer.position.step, trainer.position.tokens)
    assert not math.isfinite(line["grad_norm"])
    # The sigmoid of infinite logits is finite, its gradient times them is not.
    only_gradients = site in GRADIENTS or (site, value) == ("router logits", math.inf)
    assert math.isfinite(line["loss"]) == only_gradients
    # The run in which that batch was left out by construction.
    twin.position = trainer.position
    after, expected = train_step(trainer), train_step(twin)
    assert "skipped" not in after, "a fault is over with its step"
    untimed = {"tokens_per_second"}
    assert {k: after[k] for k in after.keys() - untimed} == {
        k: expected[k] for k in expected.keys() - untimed
    }
    assert differing(everything(trainer), everything(twin)) == []
    assert trainer.state() == twin.state() | {
        "alarms": trainer.alarms.state()  # which know that a step is missing
    }


@pytest.mark.parametrize("site", SITES)
def test_the_policy_stop_says_step_and_place(pair: tuple[Trainer, Trainer], site: str) -> None:
    trainer, _ = pair
    before, position = everything(trainer), trainer.position
    stopping = trainer.config.health.model_copy(update={"on_non_finite": "stop"})
    with pytest.MonkeyPatch.context() as patch, poisoned(trainer.model, site, math.nan) as poison:
        patch.setattr(trainer.policies, "_health", stopping)
        with pytest.raises(NumericHealthError) as stopped:
            train_step(trainer)
    assert poison.fired > 0
    assert stopped.value.exit_code == 5
    text = str(stopped.value)
    assert text.startswith(f"step {position.step + 1}: the ")
    assert "the update was not applied" in text
    if site in NAMED:
        assert NAMED[site] in text
    assert differing(everything(trainer), before) == []
    assert trainer.position == position


def test_skips_in_a_row_come_to_an_end(pair: tuple[Trainer, Trainer]) -> None:
    trainer, twin = pair
    with poisoned(trainer.model, "loss", math.nan):
        assert train_step(trainer)["skipped"]
        with pytest.raises(NumericHealthError, match=r"after health\.largest_skips=1 in a row"):
            train_step(trainer)
    assert "skipped" not in train_step(trainer)
    with poisoned(trainer.model, "loss", math.nan):
        assert train_step(trainer)["skipped"]
    twin.position = trainer.position
