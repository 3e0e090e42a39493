"""Losses are summed per domain and divided once; nothing is averaged twice."""

import math

import numpy as np
import pytest
import torch

from dsv3.data.samples import ValidationSample
from dsv3.train.evaluation import evaluate


class FakeModel:
    """Loses, on every label, as many nats as the label's number."""

    def token_losses(self, input_ids_BS, labels_BS):
        assert torch.equal(input_ids_BS[:, 1:], labels_BS[:, :-1])
        return labels_BS.float()


def sample(domain, ids, target_bytes):
    return ValidationSample(domain, np.array(ids, dtype=np.int64), target_bytes)


SAMPLES = [
    sample("b", [9, 1, 2], 10),
    sample("a", [9, 3, 4], 5),
    sample("b", [9, 5, 6], 30),
]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_losses_per_domain_and_in_all(batch_size):
    result = evaluate(FakeModel(), SAMPLES, batch_size, torch.device("cpu"))
    assert result.loss == (3 + 7 + 11) / 6
    assert result.evaluated_tokens == 6
    assert result.bpb == pytest.approx(21 / math.log(2) / 45, rel=1e-15)
    assert list(result.domains) == ["a", "b"]
    assert result.domains["a"]["loss"] == 3.5
    assert result.domains["b"]["loss"] == 14 / 4
    assert result.domains["b"]["bpb"] == pytest.approx(14 / math.log(2) / 40, rel=1e-15)
