"""What is sound passes without asking for the last good checkpoint: that may mean to wait."""

import math
from types import SimpleNamespace

import pytest

from dsv3.errors import NumericHealthError
from dsv3.train.health import refuse_different_replicas, refuse_non_finite_loss
from dsv3.train.position import Position


def wait() -> str:
    raise AssertionError("training stood still for a save")


def test_who_has_nothing_to_tell_does_not_wait() -> None:
    refuse_non_finite_loss(1.5, Position(3), wait)
    refuse_different_replicas(SimpleNamespace(differing_weights=list), 3, wait)


def test_the_last_good_checkpoint_is_named() -> None:
    with pytest.raises(NumericHealthError, match=r"step 3: .* nan; .* checkpoint is runs/a/step-2"):
        refuse_non_finite_loss(math.nan, Position(3), lambda: "runs/a/step-2")
    differing = SimpleNamespace(differing_weights=lambda: ["rank 1: 1 of its weights differ"])
    with pytest.raises(NumericHealthError, match=r"step 3: rank 1: .* there is no checkpoint yet"):
        refuse_different_replicas(differing, 3, lambda: None)
