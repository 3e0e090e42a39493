"""Held-out text: nats per token and bits per byte, in all and per domain, and the experts' load."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsv3.data.samples import ValidationSample
from dsv3.model.transformer import Transformer
from dsv3.train.domain_load import DomainLoad, DomainLoadCounter


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
    """One evaluation: text by domain, the load of the experts, what the MTP modules guess.

    mtp_acceptance is the share of the positions at which the module of each depth agrees with the
    main model; empty without modules.
    """

    domains: dict[str, Tally]
    load: DomainLoad
    mtp_acceptance: tuple[float, ...]

    @property
    def total(self) -> Tally:
        """All domains together, each token counting once."""
        tallies = self.domains.values()
        return Tally(
            math.fsum(t.nats for t in tallies),
            sum(t.tokens for t in tallies),
            sum(t.bytes for t in tallies),
        )

    @property
    def loss(self) -> float:
        """Nats per token of the whole set."""
        return self.total.loss

    def record(self) -> dict[str, Any]:
        """The figures of a line of metrics.jsonl; without MoE layers the loads' are missing."""
        total, over_set = self.total, self.load.max_violation_global()
        record: dict[str, Any] = {
            "loss": total.loss,
            "bpb": total.bpb,
            "evaluated_tokens": total.tokens,
            "domains": {name: {"loss": t.loss, "bpb": t.bpb} for name, t in self.domains.items()},
        }
        if over_set:
            record |= {
                "max_violation_global": _mean(over_set.values()),
                "max_violation_global_per_layer": over_set,
                "max_violation_sequence": _mean(self.load.max_violation_sequence().values()),
            }
        if self.mtp_acceptance:
            record["mtp_acceptance"] = list(self.mtp_acceptance)
        return record

    def figures(self) -> dict[str, Any]:
        """Every figure, for the file of the evaluation; the load itself is an array."""
        domains = {}
        for index, (name, tally) in enumerate(self.domains.items()):
            domains[name] = {
                "loss": tally.loss,
                "bpb": tally.bpb,
                "sequences": int(self.load.sequences[index]),
                "tokens": tally.tokens,
                "bytes": tally.bytes,
            }
            if self.load.layers:
                domains[name]["max_violation"] = _mean(self.load.max_violation_of(name).values())
        return self.record() | {"domains": domains, "layers": self.load.by_layer()}


def evaluate(
    model: Transformer,
    samples: Sequence[ValidationSample],
    batch_size: int,
    device: torch.device,
    *,
    mtp_depth: int = 0,
    on_batch: Callable[[int, float], None] | None = None,
) -> Evaluation:
    """Evaluate `model`, which is in evaluation mode, on held-out samples of one length.

    MTP modules are left out of loss and load. No random numbers are drawn, and nothing training
    counts on is touched. `on_batch` is told the batches done and the loss of the last.
    """
    domains = {sample.domain for sample in samples}
    tallies = {name: Tally() for name in sorted(domains)}
    counter = DomainLoadCounter(model, sorted(domains))
    accepted = torch.zeros(mtp_depth, dtype=torch.float64)
    for batch, start in enumerate(range(0, len(samples), batch_size), start=1):
        chunk = samples[start : start + batch_size]
        ids = torch.from_numpy(np.stack([sample.ids for sample in chunk])).to(device)
        input_ids_BS, labels_BS = ids[:, :-1], ids[:, 1:]
        losses_BS = model.token_losses(input_ids_BS, labels_BS)
        counter.add([sample.domain for sample in chunk])
        _add(tallies, chunk, losses_BS)
        if mtp_depth > 0:
            # Every sequence has as many positions as another: their mean weighs by sequences.
            rates = model.mtp_acceptance(input_ids_BS)
            accepted += rates.cpu().double() * len(chunk)
        if on_batch is not None:
            on_batch(batch, float(losses_BS.mean()))
    return Evaluation(tallies, counter.finish(), tuple((accepted / len(samples)).tolist()))


def _add(tallies: dict[str, Tally], chunk: Sequence[ValidationSample], losses_BS: Tensor) -> None:
    for sample, nats in zip(chunk, losses_BS.double().sum(1).tolist(), strict=True):
        tally = tallies[sample.domain]
        tally.nats += nats
        tally.tokens += losses_BS.shape[1]
        tally.bytes += sample.target_bytes


def _mean(values: Any) -> float:
    values = list(values)
    return math.fsum(values) / len(values)
