"""Operators of emulated FP8: the most that their bodies hold at once, found by running them.

They are torch's operations throughout, so that a body runs on tensors without data as the program
around it does. It asks for numbers in two places: whether a tensor has a NaN, which is answered
with no, and how many rows each expert has, which are shared out evenly.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

import dsv3.ops.fp8_experts as experts
import dsv3.ops.fp8_linear as linear
from dsv3.ops.fp8 import TILE
from dsv3.ops.fp8_places import Places
from dsv3.train.trace_memory import Ledger, Workspace

_ASKED = {torch.ops.aten.is_nonzero.default, torch.ops.aten._local_scalar_dense.default}
_found: dict[Any, int] = {}


def held_inside(func: Any, args: tuple[Any, ...], workspace: Workspace) -> int:
    """Bytes that the operator holds at its fullest moment, beside what it returns; 0 for others."""
    body = _BODIES.get(func)
    if body is None:
        return 0
    key = (func, workspace, *map(_kind, args))
    if key not in _found:
        ledger = _Answering(workspace, _tensors(args))
        with torch.no_grad(), ledger:
            out = body(*args)
        returned = sum(each.untyped_storage().nbytes() for each in _tensors(out))
        _found[key] = max(0, ledger.cut().peak - returned)
    return _found[key]


class _Answering(Ledger):
    """A ledger under which no tensor has a NaN."""

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in _ASKED and args[0].dtype == torch.bool:
            return False
        return super().call(func, args, kwargs)


def _experts_forward(
    rows: Tensor,
    row_weights: Tensor,
    per_expert: Tensor,
    gate_up_proj: Tensor,
    down: Tensor,
    recipe: Sequence[int],
    layer: str,
) -> Any:
    both = experts.projections_of(layer, recipe, _even_places(rows, per_expert))
    return experts.forward(both, rows, row_weights, gate_up_proj, down)


def _experts_backward(
    grad: Tensor,
    rows: Tensor,
    row_weights: Tensor,
    per_expert: Tensor,
    weights: Sequence[Tensor],
    gate_up: Tensor,
    recipe: Sequence[int],
    layer: str,
) -> Any:
    both = experts.projections_of(layer, recipe, _even_places(rows, per_expert))
    gate_up_proj, down = weights
    return experts.gradients(both, grad, rows, row_weights, gate_up_proj, down, gate_up)


def _even_places(rows: Tensor, per_expert: Tensor) -> Places:
    """Where the rows would lie if all experts had equally many.

    In no fewer tiles than uneven loads lead to: on average half of each expert's last is filled up.
    """
    number, several = len(rows), len(per_expert)
    counts = [number // several + (each < number % several) for each in range(several)]
    with unset_fake_temporarily():
        places = Places.of(torch.tensor(counts, device="cpu"))
    filled = -(-(number + several * TILE // 2) // TILE) * TILE
    row_R = torch.empty(number, dtype=torch.int64)
    return places._replace(rows=max(places.rows, filled), row_R=row_R)


def _tensors(found: Any) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    if not isinstance(found, list | tuple):
        return []
    return [tensor for each in found for tensor in _tensors(each)]


def _kind(argument: Any) -> Any:
    """What tells arguments apart here; a layer's name does not."""
    match argument:
        case Tensor():
            return tuple(argument.shape), argument.dtype
        case list() | tuple():
            return tuple(map(_kind, argument))
    return None if isinstance(argument, str) else argument


_BODIES: dict[Any, Callable[..., Any]] = {
    torch.ops.dsv3.fp8_linear.default: linear.forward,
    torch.ops.dsv3.fp8_linear_backward.default: linear.gradients,
    torch.ops.dsv3.fp8_grouped_mlp.default: _experts_forward,
    torch.ops.dsv3.fp8_grouped_mlp_backward.default: _experts_backward,
}
