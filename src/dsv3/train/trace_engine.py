"""Stand-ins for Transformer Engine's layers, which allocate and keep what its source says it does.

A trace runs the project's own adapter over them (`model/backends/te.py`), as a run does over the
package. Read from 2.20.2: `module/linear.py`, `module/grouped_linear.py`, the quantisers'
`inner_tensor_specs`, `ops/basic/rmsnorm.py` and the fused attention; FP8 and one scale for each
tensor as on Hopper, MXFP8 as on Blackwell. Nothing of it was measured, and what cuDNN takes inside
of its attention is in none of it.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dsv3.config.precision import PrecisionConfig, Recipe
from dsv3.plan.fp8_copies import CUBLAS_BYTES, CUBLAS_ROOMS, Copy, copies_of


class StandIn:
    """In place of `transformer_engine.pytorch`: the objects that the adapter makes of it."""

    def __init__(self, precision: PrecisionConfig) -> None:
        self.Linear = partial(StandInLinear, precision.recipe)
        self.GroupedLinear = partial(StandInGrouped, precision.recipe)
        self.RMSNorm = StandInNorm
        self.DotProductAttention = StandInAttention
        self.autocast = _autocast


class StandInLinear:
    """y = x W^T."""

    def __init__(self, recipe: Recipe, _in: int, _out: int, **_: Any) -> None:
        self._recipe = recipe
        self.weight: Any = None

    def __call__(self, x: Tensor) -> Tensor:
        """[R, I] -> [R, O]."""
        out: Tensor = _Products.apply(x, self._recipe, self.weight)  # type: ignore[no-untyped-call]
        return out


class StandInGrouped:
    """The same for as many weights as there are experts, all of them in one node."""

    def __init__(self, recipe: Recipe, num_gemms: int, *_: int, **__: Any) -> None:
        self._recipe, self._experts = recipe, num_gemms
        for expert in range(num_gemms):
            setattr(self, f"weight{expert}", None)

    def __call__(self, x: Tensor, _splits: Tensor) -> Tensor:
        """[R, I] -> [R, O], the experts equally loaded."""
        weights = [getattr(self, f"weight{expert}") for expert in range(self._experts)]
        out: Tensor = _Products.apply(x, self._recipe, *weights)  # type: ignore[no-untyped-call]
        return out


class StandInNorm:
    """One kernel: it keeps its input, made contiguous, and an FP32 number for each row."""

    def __init__(self, _width: int, **_: Any) -> None:
        self.weight: Any = None  # its caller's

    def __call__(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        normed: Tensor = _Norm.apply(x, self.weight)  # type: ignore[no-untyped-call]
        return normed


class StandInAttention:
    """cuDNN's kernel: it keeps its operands, its result and an FP32 number for each row."""

    def __init__(self, **_: Any) -> None:
        pass

    def __call__(self, q_BSHd: Tensor, k_BSHd: Tensor, v_BSHV: Tensor) -> Tensor:
        """Values side by side, [B, S, H V]."""
        out: Tensor = _Attention.apply(q_BSHd, k_BSHd, v_BSHV)  # type: ignore[no-untyped-call]
        return out


class _Products(torch.autograd.Function):
    """Forward: copies of the input, of which that by row goes, and both of the weights.

    Those of a weight stay for the backward pass, once for every micro batch under way: without
    `is_first_microbatch` they are made in each. Its gradient goes into `main_grad`, which is there.
    """

    @staticmethod
    def forward(ctx: Any, x_RI: Tensor, recipe: Recipe, *weights: Tensor) -> Tensor:
        kept: tuple[Tensor, ...] = (x_RI, weights[0])
        if recipe != "bf16":
            _by_row, by_column = _rows_quantised(x_RI, recipe, len(weights))
            kept = (*by_column, *_weights_quantised(weights, recipe))
        out_RO = x_RI.new_empty(x_RI.shape[0], weights[0].shape[0])
        ctx.save_for_backward(*kept)
        ctx.recipe, ctx.experts, ctx.width = recipe, len(weights), x_RI.shape[1]
        return out_RO

    @staticmethod
    def backward(ctx: Any, grad_RO: Tensor) -> Any:
        _kept = ctx.saved_tensors
        grad_RO = grad_RO.contiguous()
        if ctx.recipe != "bf16":
            _copies = _rows_quantised(grad_RO, ctx.recipe, ctx.experts)
        grad_RI = grad_RO.new_empty(grad_RO.shape[0], ctx.width)
        return grad_RI, None, *(None,) * ctx.experts


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor) -> Tensor:
        x = x.contiguous()
        inverse = x.new_empty(x.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(x, weight_D, inverse)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight_D, _ = ctx.saved_tensors
        grad = grad.contiguous()
        return torch.empty_like(x), torch.empty_like(weight_D)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BSHd: Tensor, k_BSHd: Tensor, v_BSHV: Tensor) -> Tensor:
        B, S, H, _ = v_BSHV.shape
        out = torch.empty_like(v_BSHV).view(B, S, -1)
        sums_BHS1 = q_BSHd.new_empty((B, H, S, 1), dtype=torch.float32)
        ctx.save_for_backward(q_BSHd, k_BSHd, v_BSHV, out, sums_BHS1)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        operands = ctx.saved_tensors[:3]
        grad = grad.contiguous()
        return tuple(torch.empty_like(each) for each in operands)


def room_for_products(precision: PrecisionConfig) -> list[Tensor]:
    """What Transformer Engine gives cuBLAS to work with, made once."""
    if precision.backend != "te":
        return []
    return [torch.empty(CUBLAS_BYTES, dtype=torch.uint8) for _ in range(CUBLAS_ROOMS)]


def _autocast(**_: Any) -> AbstractContextManager[None]:
    """What is called inside knows its recipe already."""
    return nullcontext()


Made = tuple[Tensor, Tensor]  # codes, and their scales


def _rows_quantised(x_RI: Tensor, recipe: Recipe, experts: int) -> tuple[Made, Made]:
    """The copies by row and by column of rows that are shared out evenly over experts."""
    share = -(-x_RI.shape[0] // experts)
    by_row, by_column = copies_of(recipe, share, x_RI.shape[1], is_weight=False)
    return _made(x_RI.shape, by_row, experts), _made(x_RI.shape, by_column, experts)


def _weights_quantised(weights: Sequence[Tensor], recipe: Recipe) -> tuple[Tensor, ...]:
    """The same of every expert's weight, [e, O, I]: they come and go together."""
    rows, width = weights[0].shape
    by_row, by_column = copies_of(recipe, rows, width, is_weight=True)
    shape = (len(weights), rows, width)
    return *_made(shape, by_row, len(weights)), *_made(shape, by_column, len(weights))


def _made(shape: Sequence[int], copy: Copy, number: int) -> Made:
    dtype = torch.float32 if copy.scale_bytes == torch.float32.itemsize else torch.uint8
    scales = torch.empty(number, copy.scales, dtype=dtype)
    return torch.empty(shape, dtype=torch.uint8), scales
