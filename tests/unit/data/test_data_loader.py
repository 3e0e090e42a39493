"""Batches: shifted labels, and the same global batch however it is divided."""

import pytest
import torch

from dsv3.data.loader import read_batch
from dsv3.data.samples import TrainingSamples


def test_labels_are_the_inputs_one_token_later(prepared_text):
    samples = TrainingSamples(prepared_text, 16, seed=1)
    inputs, labels = read_batch(samples, 3, 4)
    assert inputs.shape == labels.shape == (4, 16)
    assert inputs.dtype == labels.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], labels[:, :-1])
    for row in range(4):
        assert inputs[row].tolist() == samples[3 + row][:-1].tolist()
        assert labels[row, -1] == samples[3 + row][-1]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_that_share_a_batch_see_together_what_one_rank_sees(ranks, prepared_text):
    step, batch = 7, 8
    whole, _ = read_batch(TrainingSamples(prepared_text, 16, seed=1), step * batch, batch)
    parts = [
        read_batch(
            TrainingSamples(prepared_text, 16, seed=1),
            step * batch + rank * batch // ranks,
            batch // ranks,
        )
        for rank in range(ranks)
    ]
    assert torch.equal(torch.cat([inputs for inputs, _ in parts]), whole)
