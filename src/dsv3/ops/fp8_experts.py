"""The routed experts' SwiGLU networks with all products in emulated FP8, over sorted rows.

Tiles begin anew at each expert, as in Transformer Engine's grouped layers. Tensors of all experts
are quantised at once, products taken one expert after the other.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3.ops.fp8 import BLOCKS, COLUMNS, ROWS, Rounded, Shape, round_to_fp8
from dsv3.ops.fp8_linear import Fp8, Site
from dsv3.ops.fp8_places import Places
from dsv3.ops.fp8_products import product, transposed


def fp8_grouped_mlp(
    rows_RD: Tensor,
    row_weights_R: Tensor,
    rows_per_expert_e: Tensor,
    gate_up_proj: Tensor,
    down_proj: Tensor,
    recipe: tuple[Fp8, str],
) -> Tensor:
    """`ops.experts.grouped_mlp` in FP8: w * down_i(silu(gate_i x) * up_i x) for each row.

    `recipe` is the FP8 recipe and the layer's name. Rows beyond those of the last expert are not
    read, and zero in the result. The gradients of the projections are FP32.
    """
    fp8, layer = recipe
    inputs = (rows_RD, row_weights_R, rows_per_expert_e, gate_up_proj, down_proj)
    out_RD: Tensor
    out_RD, _ = torch.ops.dsv3.fp8_grouped_mlp(*inputs, fp8.packed(), layer)
    return out_RD


class Projection(NamedTuple):
    """One projection of all experts, e x [O, I]."""

    site: Site
    places: Places

    def fprop(self, x_RI: Tensor, weights: Rounded) -> Tensor:
        """Rows through their expert's matrix, [R, O]."""
        left = self.site.operand(self.places.apart(x_RI), ROWS, "input")
        out_RO = self._products(left, ROWS, _each(weights), x_RI)
        self.site.ran("fprop", ROWS, BLOCKS, out_RO.dtype)
        return out_RO

    def dgrad(self, dy_RO: Tensor, weights: Rounded) -> Tensor:
        """dy W for each row, [R, I]."""
        tile = self.site.fp8.gradient_tile
        left = self.site.operand(self.places.apart(dy_RO), tile, "gradient")
        out_RI = self._products(left, tile, [transposed(w) for w in _each(weights)], dy_RO)
        self.site.ran("dgrad", tile, BLOCKS, out_RI.dtype)
        return out_RI

    def wgrad(self, dy_RO: Tensor, x_RI: Tensor) -> Tensor:
        """dy^T x over the rows of each expert: FP32 [e, O, I], zero for one without rows."""
        dy_PO, x_PI = self.places.apart(dy_RO), self.places.apart(x_RI)
        left = self.site.operand(dy_PO, COLUMNS, "gradient for weights")
        right = round_to_fp8(x_PI, COLUMNS, power_of_two=self.site.fp8.power_of_two)
        of_experts = zip(
            self.places.of_experts(left, COLUMNS),
            self.places.of_experts(right, COLUMNS),
            strict=True,
        )
        sums = self.site.fp8.sums
        out_eOI = torch.stack([product(transposed(a), transposed(b), sums) for a, b in of_experts])
        self.site.ran("wgrad", COLUMNS, COLUMNS, out_eOI.dtype)
        return out_eOI

    def weights(self, weight_eOI: Tensor) -> Rounded:
        """The matrices, quantised for fprop and dgrad alike."""
        return self.site.operand(weight_eOI, BLOCKS, "weight")

    def _products(
        self, left: Rounded, tile: Shape, rights: Sequence[Rounded], like: Tensor
    ) -> Tensor:
        out = like.new_zeros(like.shape[0], rights[0].values.shape[0])
        runs = out[: sum(self.places.counts)].split(self.places.counts)
        of_experts = self.places.of_experts(left, tile)
        for operand, right, run in zip(of_experts, rights, runs, strict=True):
            run.copy_(product(operand, right, self.site.fp8.sums))
        return out


Projections = tuple[Projection, Projection]


@torch.library.custom_op("dsv3::fp8_grouped_mlp", mutates_args=())
def _forward(
    rows: Tensor,
    row_weights: Tensor,
    rows_per_expert: Tensor,
    gate_up_proj: Tensor,
    down: Tensor,
    recipe: list[int],
    layer: str,
) -> tuple[Tensor, Tensor]:
    """The result, and gate_up [R, 2F] for the backward pass."""
    both = projections_of(layer, recipe, Places.of(rows_per_expert))
    return forward(both, rows, row_weights, gate_up_proj, down)


def forward(
    projections: Projections, rows: Tensor, row_weights: Tensor, gate_up_proj: Tensor, down: Tensor
) -> tuple[Tensor, Tensor]:
    """The operator's body, once it is known where the rows of each expert lie."""
    first, second = projections
    gate_up = first.fprop(rows, first.weights(gate_up_proj))
    gate, up = gate_up.chunk(2, dim=1)
    activated = F.silu(gate).mul_(up).mul_(_column(row_weights, rows))
    return second.fprop(activated, second.weights(down)), gate_up


@torch.library.custom_op("dsv3::fp8_grouped_mlp_backward", mutates_args=())
def _gradients(
    grad: Tensor,
    rows: Tensor,
    row_weights: Tensor,
    rows_per_expert: Tensor,
    projections: list[Tensor],
    gate_up: Tensor,
    recipe: list[int],
    layer: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the rows, their weights and both projections."""
    both = projections_of(layer, recipe, Places.of(rows_per_expert))
    gate_up_proj, down = projections
    return gradients(both, grad, rows, row_weights, gate_up_proj, down, gate_up)


def gradients(
    projections: Projections,
    grad: Tensor,
    rows: Tensor,
    row_weights: Tensor,
    gate_up_proj: Tensor,
    down: Tensor,
    gate_up: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The body of its backward pass."""
    first, second = projections
    weight = _column(row_weights, rows)
    gate, up = gate_up.chunk(2, dim=1)
    silu = F.silu(gate)
    activated = silu * up
    d_down = second.wgrad(grad, activated * weight)
    d_activated = second.dgrad(grad, second.weights(down))
    d_row_weights = (d_activated * activated).sum(dim=1, dtype=row_weights.dtype)
    d_activated.mul_(weight)
    d_gate = torch.ops.aten.silu_backward(d_activated * up, gate)
    dh = torch.cat((d_gate, d_activated.mul_(silu)), dim=1)
    d_rows = first.dgrad(dh, first.weights(gate_up_proj))
    return d_rows, d_row_weights, first.wgrad(dh, rows), d_down


def projections_of(layer: str, recipe: Sequence[int], places: Places) -> Projections:
    """Both projections of a layer; `recipe` as `Fp8.packed` makes it."""
    fp8, names = Fp8.unpack(recipe), (f"{layer}.gate_up_proj", f"{layer}.down_proj")
    first, second = (Projection(Site(name, fp8), places) for name in names)
    return first, second


def _each(weights: Rounded) -> list[Rounded]:
    inverse = weights.inverse_scales
    return [
        Rounded(values, None if inverse is None else inverse[index])
        for index, values in enumerate(weights.values)
    ]


def _column(row_weights: Tensor, rows: Tensor) -> Tensor:
    return row_weights.to(rows.dtype).unsqueeze(1)


@_forward.register_fake
def _(
    rows: Tensor, row_weights: Tensor, rows_per_expert: Tensor, gate_up_proj: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rows), rows.new_empty(rows.shape[0], gate_up_proj.shape[1])


@_gradients.register_fake
def _(
    grad: Tensor,
    rows: Tensor,
    row_weights: Tensor,
    rows_per_expert: Tensor,
    projections: list[Tensor],
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first, second = (torch.empty_like(each, dtype=torch.float32) for each in projections)
    return torch.empty_like(rows), torch.empty_like(row_weights), first, second


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], output[1])
    ctx.recipe = inputs[5:]
    ctx.set_materialize_grads(False)  # none comes for gate_up


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    *of_rows, gate_up_proj, down, gate_up = ctx.saved_tensors
    d_rows, d_row_weights, d_gate_up, d_down = torch.ops.dsv3.fp8_grouped_mlp_backward(
        grad.contiguous(), *of_rows, [gate_up_proj, down], gate_up, *ctx.recipe
    )
    return d_rows, d_row_weights, None, d_gate_up, d_down, None, None


_forward.register_autograd(_backward, setup_context=_keep)
