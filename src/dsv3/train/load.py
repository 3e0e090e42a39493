"""The load of the experts in one optimizer step, and the figures that describe it.

Suffix `L` counts the MoE layers of the model, those of MTP modules included.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from dsv3.model.moe import MoE
from dsv3.train.layers import ModelLayers
from dsv3.train.ranks import Ranks

PER_LAYER = (
    "max_violation",
    "max_violation_sequence",
    "load_entropy",
    "dead_experts",
    "bias_spread",
    "bias_mean",
    "score_saturation",
)
"""Figures that a step's line holds for every layer, as `<figure>_per_layer`."""

_DIGITS = 6
"""Of a float of one layer: a model has many layers, and a run many lines."""


@dataclass(frozen=True)
class Load:
    """What the routers did in one optimizer step, summed over its global batch.

    Tensors are int64 on the model's device. `tokens_LE`: tokens sent to each expert;
    `sequence_peaks_L`: the most tokens of a sequence that went to one expert, summed over
    sequences; `saturated_scores_L`: router scores within 0.01 of 0 or 1. A token goes to `top_k`
    experts.
    """

    names: tuple[str, ...]
    top_k: int
    tokens_LE: Tensor
    sequence_peaks_L: Tensor
    saturated_scores_L: Tensor

    @cached_property
    def tokens_per_expert(self) -> dict[str, Tensor]:
        """Tokens of each expert, int64 [E], by the layer's canonical name."""
        return dict(zip(self.names, self.tokens_LE.unbind(), strict=True))

    @cached_property
    def layers(self) -> list[int]:
        """The layers' numbers: n of `model.layers.n.mlp`."""
        return [int(name.split(".")[2]) for name in self.names]

    def __add__(self, other: "Load") -> "Load":
        """The load of several steps."""
        ours, theirs = self._tensors(), other._tensors()
        sums = (one + another for one, another in zip(ours, theirs, strict=True))
        return Load(self.names, self.top_k, *sums)

    def counts(self) -> list[list[Any]]:
        """The tensors as JSON, for `of_counts`."""
        return [tensor.tolist() for tensor in self._tensors()]

    @classmethod
    def of_counts(cls, layers: Mapping[str, MoE], counts: list[list[Any]]) -> Self:
        """The inverse of `counts`, for a model with these layers."""
        of_model = ModelLayers.whole(layers)
        device = of_model.table(0, torch.int64).device
        tensors = (torch.tensor(each, dtype=torch.int64, device=device) for each in counts)
        return cls(of_model.names, of_model.top_k, *tensors)

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.tokens_LE, self.sequence_peaks_L, self.saturated_scores_L


def take_load(layers: Mapping[str, MoE], ranks: Ranks | None = None) -> Load:
    """Read the counters of the step that just ended, over all ranks, and set them back to zero.

    Layers of the model that other stages hold are in it too, if `layers` knows of them.
    """
    of_model = ModelLayers.whole(layers)
    counts = of_model.table(of_model.experts + 2, torch.int64)
    for name, moe in of_model.items():
        counters = (moe.tokens_per_expert_E, moe.sequence_peaks, moe.saturated_scores)
        counts[of_model.row(name)] = torch.cat([counter.view(-1) for counter in counters])
        for counter in counters:
            counter.zero_()
    if ranks is not None and of_model.names:
        counts = ranks.sum(counts)
    return Load(of_model.names, of_model.top_k, counts[:, :-2], counts[:, -2], counts[:, -1])


def max_violation(load_E: Tensor) -> float:
    """MaxVio: largest load / mean load - 1 (arXiv 2408.15664, section 4); 0 without any load."""
    return float(_max_violation(load_E))


def load_entropy(load_E: Tensor) -> float:
    """Entropy of the load as a fraction of the even load's: 1 if even, 0 if one expert has all."""
    return float(_load_entropy(load_E))


def dead_experts(load_E: Tensor) -> int:
    """Experts without a token."""
    return int(_dead_experts(load_E))


# The same over the last dimension, [..., E] -> [...].


def _max_violation(load: Tensor) -> Tensor:
    return _peak_violation(load.amax(-1), load.sum(-1), load.shape[-1])


def _peak_violation(peak: Tensor, total: Tensor, experts: int) -> Tensor:
    # Integers up to the division: loads beyond 2^53 / E stay apart.
    return (peak * experts - total).double() / total.clamp(min=1)


def _load_entropy(load: Tensor) -> Tensor:
    experts, total = load.shape[-1], load.sum(-1, keepdim=True)
    if experts == 1:
        return torch.ones(load.shape[:-1], dtype=torch.float64, device=load.device)
    share = load.double() / total.clamp(min=1)
    entropy: Tensor = torch.special.entr(share).sum(-1) / math.log(experts)
    return entropy + (total == 0).squeeze(-1)  # no load at all is an even one


def _dead_experts(load: Tensor) -> Tensor:
    return (load == 0).sum(-1)


def score_saturation(load: Load) -> Tensor:
    """Fraction of the router's scores within 0.01 of 0 or 1, FP64 [L]."""
    tokens_L = load.tokens_LE.sum(-1) // load.top_k
    scores_L = tokens_L * load.tokens_LE.shape[-1]
    return load.saturated_scores_L.double() / scores_L.clamp(min=1)


def load_figures(load: Load, bias_LE: Tensor) -> dict[str, list[float]]:
    """Every figure of every layer, in the order of `load.layers`: one copy to the host in all."""
    tokens_LE = load.tokens_LE
    total_L, experts = tokens_LE.sum(-1), tokens_LE.shape[-1]
    least_L, most_L = tokens_LE.aminmax(dim=-1)
    lowest_L, highest_L = bias_LE.aminmax(dim=-1)
    figures = {
        "max_violation": _peak_violation(most_L, total_L, experts),
        # Sequences are of one length: the mean of their MaxVio is that of their mean peak.
        "max_violation_sequence": _peak_violation(load.sequence_peaks_L, total_L, experts),
        "relative_load_max": (most_L * experts).double() / total_L.clamp(min=1),
        "relative_load_min": (least_L * experts).double() / total_L.clamp(min=1),
        "load_entropy": _load_entropy(tokens_LE),
        "dead_experts": _dead_experts(tokens_LE),
        "bias_min": lowest_L,
        "bias_max": highest_L,
        "bias_spread": highest_L.double() - lowest_L,
        "bias_mean": bias_LE.mean(-1, dtype=torch.float64),
        "score_saturation": score_saturation(load),
    }
    stacked = torch.stack([figure.double() for figure in figures.values()])
    return dict(zip(figures, stacked.tolist(), strict=True))


def load_record(load: Load, layers: Mapping[str, MoE]) -> dict[str, Any]:
    """What a step's line says about the load: a number each, and an object by layer number.

    The numbers are means over layers, except `dead_experts`, the sum, `bias_min` and `bias_max`.
    """
    if not load.names:
        return {}
    figures = load_figures(load, ModelLayers.whole(layers).biases())
    count = len(load.layers)
    record: dict[str, Any] = {
        name: math.fsum(of_layers) / count for name, of_layers in figures.items()
    }
    record["dead_experts"] = int(sum(figures["dead_experts"]))
    record["bias_min"], record["bias_max"] = min(figures["bias_min"]), max(figures["bias_max"])
    for name in PER_LAYER:
        short = int if name == "dead_experts" else _short
        of_layers = zip(map(str, load.layers), map(short, figures[name]), strict=True)
        record[f"{name}_per_layer"] = dict(of_layers)
    return record


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
