"""Held-out text: nats per token and bits per byte, in all and per domain, and the experts' load."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dsv3.data.samples import ValidationSample
from dsv3.train.domain_load import DomainLoad, DomainLoadCounter
from dsv3.train.layers import ModelLayers
from dsv3.train.ranks import Ranks


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


class Evaluated(Protocol):
    """A model, or this rank's view of one that a pipeline holds.

    The losses and shares of other ranks are zero here: they add up over the ranks.
    """

    def token_losses(self, input_ids_BS: Tensor, labels_BS: Tensor) -> Tensor:
        """Cross entropy of every label, FP32 [B, S]."""

    def mtp_acceptance(self, input_ids_BS: Tensor) -> Tensor:
        """Share of agreement of each MTP module, FP32 [D]."""


def evaluate(
    model: Evaluated,
    samples: Sequence[ValidationSample],
    batch_size: int,
    device: torch.device,
    *,
    ranks: Ranks | None = None,
    layers: ModelLayers,
    mtp_depth: int = 0,
    on_batch: Callable[[int, float], None] | None = None,
) -> Evaluation:
    """Evaluate `model`, which is in evaluation mode, on held-out samples of one length.

    The batches are dealt out to `ranks`, and every rank has the whole result. MTP modules are left
    out of loss and load. No random numbers are drawn, and nothing training counts on is touched.
    `on_batch` is told the batches done here and the loss of the last.
    """
    counter = DomainLoadCounter(layers, sorted({sample.domain for sample in samples}))
    # What each sample and batch came to, in a place of its own: sums do not depend on the ranks.
    nats_N = torch.zeros(len(samples), dtype=torch.float64)
    starts = range(0, len(samples), batch_size)
    accepted = torch.zeros(len(starts), mtp_depth, dtype=torch.float64)
    for done, (batch, is_ours) in enumerate(_dealt(len(starts), ranks), start=1):
        places = slice(starts[batch], starts[batch] + batch_size)
        chunk = samples[places]
        ids = torch.from_numpy(np.stack([sample.ids for sample in chunk])).to(device)
        input_ids_BS, labels_BS = ids[:, :-1], ids[:, 1:]
        losses_BS = model.token_losses(input_ids_BS, labels_BS)
        if is_ours:
            counter.add([sample.domain for sample in chunk])
            nats_N[places] = losses_BS.double().sum(1).cpu()
        if mtp_depth > 0:
            # Every sequence has as many positions as another: their mean weighs by sequences.
            rates = model.mtp_acceptance(input_ids_BS).cpu().double()
            accepted[batch] = rates * len(chunk) if is_ours else 0
        if on_batch is not None:
            on_batch(done, float(losses_BS.mean()))
    if ranks is not None:
        nats_N, accepted = ranks.sum(nats_N), ranks.sum(accepted)
    shares = [math.fsum(column) / len(samples) for column in accepted.t().tolist()]
    return Evaluation(_tallies(samples, nats_N.tolist()), counter.finish(ranks), tuple(shares))


def _dealt(batches: int, ranks: Ranks | None) -> Iterator[tuple[int, bool]]:
    """This rank's batches; ranks that have fewer repeat the last, for nobody may run alone.

    The ranks of a pipeline have the same ones. Tokens go to the experts of other ranks: all of
    them have to be there for every batch.
    """
    place = None if ranks is None else ranks.place
    rank, size = (0, 1) if place is None else (place.data_rank, len(place.data_ranks))
    for first in range(0, batches, size):
        yield min(first + rank, batches - 1), first + rank < batches


def _tallies(samples: Sequence[ValidationSample], nats: Sequence[float]) -> dict[str, Tally]:
    tallies = {name: Tally() for name in sorted({sample.domain for sample in samples})}
    for sample, of_sample in zip(samples, nats, strict=True):
        tally = tallies[sample.domain]
        tally.nats += of_sample
        tally.tokens += len(sample.ids) - 1
        tally.bytes += sample.target_bytes
    return tallies


def _mean(values: Any) -> float:
    values = list(values)
    return math.fsum(values) / len(values)
