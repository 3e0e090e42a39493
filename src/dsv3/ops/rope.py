"""Rotary position embedding on interleaved pairs, and YaRN's context extension of it."""

import math

import torch
from torch import Tensor


def rotary_frequencies(width: int, theta: float) -> Tensor:
    """Angle per position of each pair, theta^(-2i/width), FP32 [width/2]."""
    return 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)


def yarn_frequencies(
    width: int,
    theta: float,
    *,
    factor: float,
    original_length: int,
    beta_fast: float,
    beta_slow: float,
) -> Tensor:
    """Frequencies for a context `factor` times longer, FP32 [width/2] (arXiv 2309.00071, 3.2).

    Pairs that turn more than `beta_fast` times within `original_length` are left alone, those that
    turn less than `beta_slow` times are slowed by `factor`, a linear ramp lies between.
    """

    def pair_turning(turns: float) -> float:
        return width * math.log(original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(pair_turning(beta_fast)), 0)
    last = min(math.ceil(pair_turning(beta_slow)), width - 1)
    pair = torch.arange(width // 2, dtype=torch.float32)
    slowed = ((pair - first) / max(last - first, 0.001)).clamp(0, 1)
    plain = rotary_frequencies(width, theta)
    return plain / factor * slowed + plain * (1 - slowed)


def yarn_temperature(factor: float, mscale: float) -> float:
    """YaRN's attention temperature sqrt(t) = 0.1 mscale ln(factor) + 1; 1 without extension."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rotation_table(frequencies: Tensor, length: int, *, magnitude: float = 1.0) -> Tensor:
    """Cosines and sines of positions 0..length-1, FP32 [2, length, width/2]."""
    position = torch.arange(length, dtype=torch.float32, device=frequencies.device)
    angle = torch.outer(position, frequencies)
    return torch.stack((angle.cos(), angle.sin())) * magnitude


def rotate_pairs(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate the adjacent pairs (x0, x1), (x2, x3), ... of the last dimension.

    `x` is [..., S, P], `rotation` [2, S, P/2]. The first members of all pairs come first in the
    result: queries and keys are permuted alike, so their products do not change. Angles and the
    rotation are FP32; the result has the type of `x`.
    """
    first, second = x[..., 0::2], x[..., 1::2]
    cos, sin = rotation.unbind()
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype)
