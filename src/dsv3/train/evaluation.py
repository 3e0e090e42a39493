"""The loss on held-out text: nats per token and bits per byte, in all and per domain."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from dsv3.data.samples import ValidationSample
from dsv3.model.transformer import Transformer


@dataclass
class Tally:
    """Summed negative log likelihood of some text, with what it is divided by."""

    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def bpb(self) -> float:
        """Bits per byte of text: comparable between tokenizers."""
        return self.nats / math.log(2) / self.bytes


@dataclass(frozen=True)
class Evaluation:
    """The figures of one evaluation, as written to metrics.jsonl."""

    loss: float
    bpb: float
    evaluated_tokens: int
    domains: dict[str, dict[str, float]]

    def record(self) -> dict[str, object]:
        """A JSON-ready dictionary."""
        return asdict(self)


def evaluate(
    model: Transformer, samples: Sequence[ValidationSample], batch_size: int, device: torch.device
) -> Evaluation:
    """Evaluate `model`, which is in evaluation mode, on held-out samples."""
    tallies: dict[str, Tally] = {}
    for start in range(0, len(samples), batch_size):
        chunk = samples[start : start + batch_size]
        ids = torch.from_numpy(np.stack([sample.ids for sample in chunk])).to(device)
        losses_BS = model.token_losses(ids[:, :-1], ids[:, 1:])
        for sample, nats in zip(chunk, losses_BS.double().sum(1).tolist(), strict=True):
            tally = tallies.setdefault(sample.domain, Tally())
            tally.nats += nats
            tally.tokens += ids.shape[1] - 1
            tally.bytes += sample.target_bytes
    return _summary(tallies)


def _summary(tallies: dict[str, Tally]) -> Evaluation:
    total = Tally(
        math.fsum(t.nats for t in tallies.values()),
        sum(t.tokens for t in tallies.values()),
        sum(t.bytes for t in tallies.values()),
    )
    domains = {
        name: {"loss": tallies[name].loss, "bpb": tallies[name].bpb} for name in sorted(tallies)
    }
    return Evaluation(total.loss, total.bpb, total.tokens, domains)
