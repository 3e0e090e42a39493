"""The routed experts' SwiGLU networks with all products in emulated FP8, over sorted rows.

Each expert's rows are set apart, beginning at a multiple of 128 with zeros between, so that no tile
holds rows of two experts: Transformer Engine's grouped layers begin their tiles anew at each. Tensors
of all experts are quantised at once, the products are taken one expert after the other.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3.ops.fp8 import BLOCKS, COLUMNS, ROWS, TILE, Rounded, Shape, round_to_fp8
from dsv3.ops.fp8_linear import Fp8, Site
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
    out_RD, _, _ = torch.ops.dsv3.fp8_grouped_mlp(*inputs, *fp8, layer)
    return out_RD


class Places(NamedTuple):
    """Where the rows of each expert lie when they are set apart, P rows in all."""

    counts: tuple[int, ...]
    begins: tuple[int, ...]
    rows: int
    row_R: Tensor  # place of each row, int64; of those that an expert has

    @classmethod
    def of(cls, rows_per_expert_e: Tensor) -> "Places":
        """Each expert begins at the next multiple of 128 after the one before."""
        ends_e = ((rows_per_expert_e + TILE - 1) // TILE * TILE).cumsum(0)
        begins_e = ends_e - (rows_per_expert_e + TILE - 1) // TILE * TILE
        counts, begins = rows_per_expert_e.tolist(), begins_e.tolist()
        compact_e = rows_per_expert_e.cumsum(0) - rows_per_expert_e
        shift_R = (begins_e - compact_e).repeat_interleave(rows_per_expert_e)
        row_R = torch.arange(len(shift_R), device=shift_R.device) + shift_R
        return cls(tuple(counts), tuple(begins), int(ends_e[-1]), row_R)

    def apart(self, x_R: Tensor) -> Tensor:
        """[R, ...] to [P, ...], zeros between."""
        return x_R.new_zeros(self.rows, *x_R.shape[1:]).index_copy_(
            0, self.row_R, x_R[: len(self.row_R)]
        )

    def together(self, x_P: Tensor, like: Tensor) -> Tensor:
        """[P, ...] to [R, ...], zeros beyond the last expert's rows."""
        out = torch.zeros_like(like)
        out[: len(self.row_R)] = x_P[self.row_R]
        return out

    def of_experts(self, operand: Rounded, tile: Shape) -> Iterator[Rounded]:
        """Each expert's rows of an operand [P, K]."""
        inverse = operand.inverse_scales
        for begin, count in zip(self.begins, self.counts, strict=True):
            first, last = begin // tile[0], (begin + count + tile[0] - 1) // tile[0]
            scales = None if inverse is None else inverse[first:last]
            yield Rounded(operand.values[begin : begin + count], scales)


class Projection(NamedTuple):
    """One projection of all experts, e x [O, I], over rows set apart."""

    site: Site
    places: Places

    def fprop(self, x_PI: Tensor, weights: Rounded) -> Tensor:
        """Rows through their expert's matrix, [P, O]."""
        left = self.site.operand(x_PI, ROWS, "input")
        out_PO = self._products(left, ROWS, _each(weights), x_PI)
        self.site.ran("fprop", ROWS, BLOCKS, out_PO.dtype)
        return out_PO

    def dgrad(self, dy_PO: Tensor, weights: Rounded) -> Tensor:
        """dy W for each row, [P, I]."""
        tile = self.site.fp8.gradient_tile
        left = self.site.operand(dy_PO, tile, "gradient")
        out_PI = self._products(left, tile, [transposed(w) for w in _each(weights)], dy_PO)
        self.site.ran("dgrad", tile, BLOCKS, out_PI.dtype)
        return out_PI

    def wgrad(self, dy_PO: Tensor, x_PI: Tensor) -> Tensor:
        """dy^T x over the rows of each expert: FP32 [e, O, I], zero for one without rows."""
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
        out = like.new_zeros(self.places.rows, rights[0].values.shape[0])
        of_experts = self.places.of_experts(left, tile)
        for operand, right, begin in zip(of_experts, rights, self.places.begins, strict=True):
            rows = product(operand, right, self.site.fp8.sums)
            out[begin : begin + len(rows)] = rows
        return out


@torch.library.custom_op("dsv3::fp8_grouped_mlp", mutates_args=())
def _forward(
    rows: Tensor,
    row_weights: Tensor,
    rows_per_expert: Tensor,
    gate_up_proj: Tensor,
    down: Tensor,
    power_of_two: bool,
    dgrad_blocks: bool,
    promote_every: int | None,
    accumulate_bits: int | None,
    layer: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The result; for the backward pass the rows apart [P, D] and their gate_up [P, 2F]."""
    fp8 = Fp8(power_of_two, dgrad_blocks, promote_every, accumulate_bits)
    places = Places.of(rows_per_expert)
    first, second = _projections(layer, fp8, places)
    x_PD = places.apart(rows)
    gate_up = first.fprop(x_PD, first.weights(gate_up_proj))
    gate, up = gate_up.chunk(2, dim=1)
    weight = places.apart(row_weights).to(rows.dtype).unsqueeze(1)
    activated = F.silu(gate).mul_(up).mul_(weight)
    out = second.fprop(activated, second.weights(down))
    return places.together(out, rows), x_PD, gate_up


@torch.library.custom_op("dsv3::fp8_grouped_mlp_backward", mutates_args=())
def _gradients(
    grad: Tensor,
    row_weights: Tensor,
    rows_per_expert: Tensor,
    gate_up_proj: Tensor,
    down: Tensor,
    x_PD: Tensor,
    gate_up: Tensor,
    power_of_two: bool,
    dgrad_blocks: bool,
    promote_every: int | None,
    accumulate_bits: int | None,
    layer: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the rows, their weights and both projections."""
    fp8 = Fp8(power_of_two, dgrad_blocks, promote_every, accumulate_bits)
    places = Places.of(rows_per_expert)
    first, second = _projections(layer, fp8, places)
    dy = places.apart(grad)
    weight = places.apart(row_weights).to(grad.dtype).unsqueeze(1)
    gate, up = gate_up.chunk(2, dim=1)
    silu = F.silu(gate)
    activated = silu * up
    d_down = second.wgrad(dy, activated * weight)
    d_activated = second.dgrad(dy, second.weights(down))
    d_weight = (d_activated * activated).sum(dim=1, dtype=row_weights.dtype)
    d_activated.mul_(weight)
    d_gate = torch.ops.aten.silu_backward(d_activated * up, gate)
    dh = torch.cat((d_gate, d_activated.mul_(silu)), dim=1)
    d_gate_up = first.wgrad(dh, x_PD)
    dx = first.dgrad(dh, first.weights(gate_up_proj))
    return places.together(dx, grad), places.together(d_weight, row_weights), d_gate_up, d_down


def _projections(layer: str, fp8: Fp8, places: Places) -> tuple[Projection, Projection]:
    names = (f"{layer}.gate_up_proj", f"{layer}.down_proj")
    first, second = (Projection(Site(name, fp8), places) for name in names)
    return first, second


def _each(weights: Rounded) -> list[Rounded]:
    inverse = weights.inverse_scales
    return [
        Rounded(values, None if inverse is None else inverse[index])
        for index, values in enumerate(weights.values)
    ]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[1:5], *output[1:])
    ctx.recipe = inputs[5:]
    ctx.set_materialize_grads(False)  # none comes for the last two


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * (5 + len(ctx.recipe))
    d_rows, d_row_weights, d_gate_up, d_down = torch.ops.dsv3.fp8_grouped_mlp_backward(
        grad.contiguous(), *ctx.saved_tensors, *ctx.recipe
    )
    return d_rows, d_row_weights, None, d_gate_up, d_down, *(None for _ in ctx.recipe)


_forward.register_autograd(_backward, setup_context=_keep)
