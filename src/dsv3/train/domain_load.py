"""Expert load over an evaluation set, per domain and layer: the data of the report's figure 9."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsv3.train.layers import ModelLayers
from dsv3.train.load import dead_experts, load_entropy, max_violation
from dsv3.train.ranks import Ranks


@dataclass(frozen=True)
class DomainLoad:
    """Exact counts, from which every measure of balance follows.

    Sequences are of one length, so that all of them have the same even load.
    """

    domains: tuple[str, ...]
    layers: tuple[str, ...]  # canonical names of the MoE layers, without those of MTP modules
    tokens_per_expert: Tensor  # int64 [domains, layers, experts]
    sequence_peaks: Tensor  # int64 [domains, layers]: largest count of each sequence, summed
    sequences: Tensor  # int64 [domains]

    @property
    def numbers(self) -> list[str]:
        """The number of each layer in the model, as JSON keys."""
        return [name.split(".")[2] for name in self.layers]

    def max_violation_global(self) -> dict[str, float]:
        """MaxVio_global by layer: the loads are counted over the whole set (arXiv 2408.15664)."""
        return {number: max_violation(load_E) for number, load_E in self._totals()}

    def max_violation_of(self, domain: str) -> dict[str, float]:
        """The same by layer over one domain: 0 where it uses all experts alike."""
        loads_LE = self.tokens_per_expert[self.domains.index(domain)]
        return {n: max_violation(load_E) for n, load_E in zip(self.numbers, loads_LE, strict=True)}

    def max_violation_sequence(self) -> dict[str, float]:
        """MaxVio by layer within a sequence, the mean over all sequences."""
        peaks_L = self.sequence_peaks.sum(0).tolist()
        return {
            number: peak * load_E.numel() / int(load_E.sum()) - 1
            for peak, (number, load_E) in zip(peaks_L, self._totals(), strict=True)
        }

    def relative_load(self) -> Tensor:
        """Load over even load, FP64 [domains, layers, experts]; 1 is balanced."""
        even = self.tokens_per_expert.double().mean(2, keepdim=True)
        return self.tokens_per_expert.double() / even

    def by_layer(self) -> dict[str, dict[str, Any]]:
        """Every measure of each layer."""
        over_set, in_sequence = self.max_violation_global(), self.max_violation_sequence()
        in_domain = {domain: self.max_violation_of(domain) for domain in self.domains}
        return {
            number: {
                "max_violation_global": over_set[number],
                "max_violation_sequence": in_sequence[number],
                "max_violation_domain": {d: of[number] for d, of in in_domain.items()},
                "load_entropy": load_entropy(load_E),
                "dead_experts": dead_experts(load_E),
            }
            for number, load_E in self._totals()
        }

    def _totals(self) -> list[tuple[str, Tensor]]:
        """Load of each layer over all domains."""
        return list(zip(self.numbers, self.tokens_per_expert.sum(0), strict=True))


class DomainLoadCounter:
    """Adds up what the MoE layers of a model counted in their last pass."""

    def __init__(self, layers: ModelLayers, domains: Sequence[str]) -> None:
        # NOTE footgun: MTP modules do not run here, and keep the counts of an older pass.
        self._layers = layers
        self._names = layers.names[: len(layers.names) - layers.mtp_depth]
        self._domains = tuple(sorted(domains))
        experts = layers.experts if self._names else 0
        shape = (len(self._domains), len(self._names), experts)
        self._tokens = torch.zeros(shape, dtype=torch.int64)
        self._peaks = torch.zeros(shape[:2], dtype=torch.int64)
        self._sequences = torch.zeros(shape[0], dtype=torch.int64)

    def add(self, domains: Sequence[str]) -> None:
        """Take the last pass, whose sequences were of these domains."""
        places_B = torch.tensor([self._domains.index(domain) for domain in domains])
        self._sequences.index_add_(0, places_B, torch.ones_like(places_B))
        for layer, name in enumerate(self._names):
            if name not in self._layers:
                continue
            counts_BE = self._layers[name].last_tokens_per_expert_BE
            assert counts_BE is not None, f"{name} has not run"
            counts_BE = counts_BE.cpu()
            assert counts_BE.shape[0] == len(domains), f"{name} {counts_BE.shape=}"
            self._tokens[:, layer].index_add_(0, places_B, counts_BE)
            self._peaks[:, layer].index_add_(0, places_B, counts_BE.amax(1))

    def finish(self, ranks: Ranks | None = None) -> DomainLoad:
        """What was counted, over all `ranks`."""
        counts = (self._tokens, self._peaks, self._sequences)
        if ranks is not None:
            # Each stage has seen every sequence.
            sequences = self._sequences if ranks.place.stage == 0 else self._sequences * 0
            counts = (ranks.sum(counts[0]), ranks.sum(counts[1]), ranks.sum(sequences))
        return DomainLoad(self._domains, self._names, *counts)
