"""Widening of narrow types before sums and exponentials."""

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """`x` itself in FP32 or FP64, an FP32 copy of anything narrower."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
