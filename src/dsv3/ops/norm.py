"""Root-mean-square normalisation."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from dsv3.ops.precision import at_least_fp32


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, statistics in FP32.

    torch composes it of many passes over memory on a CPU; a compiler fuses those itself.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.rms_norm(x, weight_D.shape, weight_D, eps)
    normed: Tensor = _RmsNorm.apply(x, weight_D, eps)  # type: ignore[no-untyped-call]
    return normed


class _RmsNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        inverse = (norm.square_() / x.shape[-1] + eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, inverse)
        normed: Tensor = (x * inverse).mul_(weight_D).to(x.dtype)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight_D, inverse = ctx.saved_tensors
        weight = at_least_fp32(weight_D)
        unit = x * inverse
        product_TD = (unit * grad).flatten(0, -2)
        grad_weight_D = product_TD.sum(dim=0)
        along = (product_TD @ weight).div_(-x.shape[-1]).view_as(inverse)
        grad_x = (grad * weight).addcmul_(unit, along).mul_(inverse)
        return grad_x.to(x.dtype), grad_weight_D.to(weight_D.dtype), None
