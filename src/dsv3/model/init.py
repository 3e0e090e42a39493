"""Initial weights, a function of (seed, canonical name, global expert id) alone.

Every tensor, and every expert of a stacked one, is drawn on the CPU from its own stream, so that
any layout of layers and experts over ranks starts from the same values.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor, nn

from dsv3.config.model import ModelConfig
from dsv3.model.moe import MoE
from dsv3.model.names import is_expert, is_norm


def materialise(
    model: nn.Module, config: ModelConfig, *, seed: int, device: torch.device, dtype: torch.dtype
) -> None:
    """Give a model built on the meta device its initial weights, one tensor at a time.

    Parameters become `dtype`; buffers keep their type and start at zero.
    """
    shards = {
        f"{prefix}.experts": module.local_experts
        for prefix, module in model.named_modules()
        if isinstance(module, MoE)
    }
    for prefix, module in model.named_modules():
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            name = f"{prefix}.{leaf}"
            value = torch.empty(parameter.shape, dtype=dtype, device=device)
            fill(value, name, config, seed=seed, local_experts=shards.get(prefix))
            setattr(module, leaf, nn.Parameter(value))
        for leaf, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, leaf, torch.zeros_like(buffer, device=device))


def fill(
    value: Tensor, name: str, config: ModelConfig, *, seed: int, local_experts: range | None
) -> None:
    """Write the initial value of a parameter, or of its local experts, into `value`."""
    if not is_expert(name):
        value.copy_(initial_value(name, value.shape, config, seed=seed))
        return
    assert local_experts is not None, f"{name=}"
    for row, expert in zip(value, local_experts, strict=True):
        row.copy_(initial_value(name, row.shape, config, seed=seed, expert=expert))


def initial_value(
    name: str,
    shape: tuple[int, ...],
    config: ModelConfig,
    *,
    seed: int,
    expert: int | None = None,
) -> Tensor:
    """FP32 initial value: ones for norm weights, else normal(0, initializer_range)."""
    if is_norm(name):
        return torch.ones(shape)
    # torch's CPU generator keeps 32 bits of its seed, too few for a stream per expert; Philox
    # takes a key of 128 and draws the same numbers whatever the processor's vector width.
    key = hashlib.blake2b(f"{seed}/{name}/{expert}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    value = torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
    return value.mul_(config.initializer_range)
