"""Values that are not finite, put into a model in training at one place, and proof that they were.

A site is a module's output or input, or a parameter's gradient; the element at the front is bad.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# Where: a module (or parameter), which of its outputs. Of a model with MTP and three blocks.
OUTPUTS: dict[str, tuple[str, int | None]] = {
    "embedding": ("model.embed_tokens", None),
    "attention": ("model.layers.1.self_attn", None),
    "router scores": ("model.layers.1.mlp.gate", 3),
    "routed experts": ("model.layers.1.mlp.experts", None),
    "shared expert": ("model.layers.1.mlp.shared_experts", None),
    "balance loss": ("model.layers.1.mlp", 1),
    "final norm": ("model.norm", None),
    "MTP module": ("model.layers.3", 0),
    "loss": ("", 0),
}
INPUTS = {"router logits": "model.layers.2.mlp.gate"}
GRADIENTS = {
    "dense gradient": "model.layers.0.mlp.down_proj.weight",
    "expert gradient": "model.layers.1.mlp.experts.down_proj",
    "norm gradient": "model.norm.weight",
    "router gradient": "model.layers.1.mlp.gate.weight",
    "embedding gradient": "model.embed_tokens.weight",
}
# What a finding names. The rest has no layer of its own whose output is bad in evaluation.
NAMED = {
    "embedding": "model.embed_tokens",
    "attention": "model.layers.1.self_attn",
    "router scores": "model.layers.1.mlp.gate",
    "routed experts": "model.layers.1.mlp.experts",
    "shared expert": "model.layers.1.mlp.shared_experts",
    "final norm": "model.norm",
    "MTP module": "model.layers.3",
} | GRADIENTS
SITES = (*OUTPUTS, *INPUTS, *GRADIENTS)


@dataclass
class Poison:
    """How often the fault was put in."""

    fired: int = field(default=0)


def holds(model: nn.Module, site: str) -> bool:
    """Whether this rank's part of the model has the site."""
    path = {**{name: path for name, (path, _) in OUTPUTS.items()}, **INPUTS, **GRADIENTS}[site]
    names = dict(model.named_parameters() if site in GRADIENTS else model.named_modules())
    return path in names


@contextmanager
def poisoned(model: nn.Module, site: str, value: float) -> Iterator[Poison]:
    """Put `value` in at `site` in every pass."""
    poison = Poison()

    def bad(tensor: Tensor) -> Tensor:
        poison.fired += 1
        flat = tensor.reshape(-1).clone()
        flat[:1] = value
        return flat.view(tensor.shape)

    def output(_module: nn.Module, _inputs: Any, out: Any) -> Any:
        index = OUTPUTS[site][1]
        if index is None:
            return bad(out)
        if out[index] is None:  # there is no balance loss without gradients
            return out
        changed = [bad(one) if at == index else one for at, one in enumerate(out)]
        return type(out)(*changed) if hasattr(out, "_fields") else tuple(changed)

    if site in OUTPUTS:
        handle = model.get_submodule(OUTPUTS[site][0]).register_forward_hook(output)
    elif site in INPUTS:
        gate = model.get_submodule(INPUTS[site])
        handle = gate.register_forward_pre_hook(lambda _m, inputs: (bad(inputs[0]), *inputs[1:]))
    else:
        handle = model.get_parameter(GRADIENTS[site]).register_hook(bad)
    try:
        yield poison
    finally:
        handle.remove()


def everything(trainer: Any) -> dict[str, Tensor]:
    """A copy of all that training goes on from: masters, moments, weights, buffers, counters."""
    module = trainer.engine.module
    state = {fragment.key: fragment.data.clone() for fragment in trainer.engine.fragments()}
    weights = {f"weight/{name}": p.detach().clone() for name, p in module.named_parameters()}
    buffers = {f"buffers/{name}": b.clone() for name, b in module.named_buffers()}
    step = torch.tensor(trainer.engine.optimizer_step)
    return {**state, **weights, **buffers, "optimizer_step": step}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of what is not bit-equal."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]
