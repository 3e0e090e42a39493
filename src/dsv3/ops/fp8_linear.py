"""A linear layer whose three products are in emulated FP8 (report figure 6 and section 3.3.2).

| product | left | right | along |
| --- | --- | --- | --- |
| fprop y = x W^T | x, 1 x 128 | W, 128 x 128 | in |
| dgrad dx = dy W | dy, 1 x 128 (or 128 x 128: appendix B.2) | the same W | out |
| wgrad dW = dy^T x | dy, 128 tokens x 1 | x, 128 tokens x 1 | tokens |

Every operand is quantised from the tensor as it stands, never from another FP8 copy of it. y and dx
are rounded to the type of x; dW stays FP32.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dsv3.ops.fp8 import BLOCKS, COLUMNS, ROWS, Rounded, Shape, range_of, round_to_fp8
from dsv3.ops.fp8_products import Sums, product, transposed
from dsv3.ops.gemm_log import Gemm, GemmKind, Role, note, note_range


class Fp8(NamedTuple):
    """The recipe: kind of scales, tiles of dgrad's gradients, and how sums are kept."""

    power_of_two: bool = True
    dgrad_blocks: bool = False
    promote_every: int | None = 128
    accumulate_bits: int | None = None

    def packed(self) -> list[int]:
        """As an operator takes it; 0 is None."""
        return [int(each or 0) for each in self]

    @classmethod
    def unpack(cls, packed: Sequence[int]) -> "Fp8":
        """The inverse of `packed`."""
        power_of_two, dgrad_blocks, promote_every, accumulate_bits = packed
        return cls(
            bool(power_of_two), bool(dgrad_blocks), promote_every or None, accumulate_bits or None
        )

    @property
    def sums(self) -> Sums:
        """The part that products need."""
        return Sums(self.promote_every, self.accumulate_bits)

    @property
    def gradient_tile(self) -> Shape:
        """Tiles of the gradient that enters dgrad."""
        return BLOCKS if self.dgrad_blocks else ROWS


class Site(NamedTuple):
    """Whose product it is, for the log."""

    layer: str
    fp8: Fp8

    def operand(self, x: Tensor, tile: Shape, role: Role) -> Rounded:
        """Quantise one operand."""
        rounded = round_to_fp8(x, tile, power_of_two=self.fp8.power_of_two)
        note_range(self.layer, role, partial(range_of, x, tile, self.fp8.power_of_two))
        return rounded

    def ran(self, kind: GemmKind, left: Shape, right: Shape, output: torch.dtype) -> None:
        """Note a product."""
        formats = (self._format(left), self._format(right), _SHORT[output])
        note(Gemm(self.layer, kind, *formats))

    def _format(self, tile: Shape) -> str:
        scales = "power_of_two" if self.fp8.power_of_two else "fp32"
        return f"e4m3 {tile[0]}x{tile[1]} {scales}"


_SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def fp8_linear(x: Tensor, weight: Tensor, fp8: Fp8, layer: str) -> Tensor:
    """x W^T: [..., I] and [O, I] to [..., O]; differentiable, the weight's gradient is FP32."""
    out: Tensor = torch.ops.dsv3.fp8_linear(x, weight, fp8.packed(), layer)
    return out


def forward(
    x: Tensor,
    weight: Tensor,
    recipe: list[int],
    layer: str,
) -> Tensor:
    """The operator's body: x W^T in the type of x."""
    site = Site(layer, Fp8.unpack(recipe))
    left = site.operand(x.flatten(0, -2), ROWS, "input")
    right = site.operand(weight, BLOCKS, "weight")
    out = product(left, right, site.fp8.sums).to(x.dtype)
    site.ran("fprop", ROWS, BLOCKS, out.dtype)
    return out.view(*x.shape[:-1], weight.shape[0])


def gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    recipe: list[int],
    layer: str,
) -> tuple[Tensor, Tensor]:
    """Its backward pass: gradients of x in its type, and of the weight in FP32."""
    site = Site(layer, Fp8.unpack(recipe))
    dy_TO, x_TI = grad.flatten(0, -2), x.flatten(0, -2)
    weight_rounded = round_to_fp8(weight, BLOCKS, power_of_two=site.fp8.power_of_two)
    grad_x = dgrad(site, dy_TO, weight_rounded, x.dtype)
    grad_weight = wgrad(site, dy_TO, x_TI)
    return grad_x.view(x.shape), grad_weight


def dgrad(site: Site, dy_TO: Tensor, weight: Rounded, dtype: torch.dtype) -> Tensor:
    """dx = dy W in `dtype`; the weight's tiles are those of fprop."""
    tile = site.fp8.gradient_tile
    left = site.operand(dy_TO, tile, "gradient")
    grad_x = product(left, transposed(weight), site.fp8.sums).to(dtype)
    site.ran("dgrad", tile, BLOCKS, grad_x.dtype)
    return grad_x


def wgrad(site: Site, dy_TO: Tensor, x_TI: Tensor) -> Tensor:
    """dW = dy^T x, FP32 [O, I]."""
    left = site.operand(dy_TO, COLUMNS, "gradient for weights")
    right = round_to_fp8(x_TI, COLUMNS, power_of_two=site.fp8.power_of_two)
    grad_weight = product(transposed(left), transposed(right), site.fp8.sums)
    site.ran("wgrad", COLUMNS, COLUMNS, grad_weight.dtype)
    return grad_weight


_forward = torch.library.custom_op("dsv3::fp8_linear", forward, mutates_args=())
_gradients = torch.library.custom_op("dsv3::fp8_linear_backward", gradients, mutates_args=())


@_forward.register_fake
def _(x: Tensor, weight: Tensor, *_recipe: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@_gradients.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, *_recipe: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight, dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.recipe = inputs[2:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    grads = torch.ops.dsv3.fp8_linear_backward(grad.contiguous(), x, weight, *ctx.recipe)
    return *grads, None, None


_forward.register_autograd(_backward, setup_context=_keep)
