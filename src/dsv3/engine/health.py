"""Steps that are refused: the errors, and where what is not finite comes from."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from dsv3.errors import NumericHealthError, Problem

NonFiniteKind = Literal["loss", "gradient norm"]

LARGEST_NUMBER_OF_NAMES = 5


class RefusedStepError(NumericHealthError):
    """A step whose update was not made; no weight, moment or counter of the engine has changed.

    `why` is a clause for people and `details` say the same to programs; `losses` (means over all
    ranks, by name) and `grad_norm` are those that were known by then.
    """

    def __init__(
        self,
        why: str,
        details: Mapping[str, Any],
        *,
        losses: Mapping[str, list[float]],
        grad_norm: float = math.nan,
    ) -> None:
        self.why = why
        self.details = details
        self.losses = losses
        self.grad_norm = grad_norm
        super().__init__(Problem("", why, "the weights are as before this step"))


class NonFiniteError(RefusedStepError):
    """A loss or gradient norm is NaN or infinite.

    `kind` says which and `value` what it was; `names` are the first layer whose output is not
    finite (loss) of each of `ranks`, or the first parameters whose gradients are not (norm). There
    are none if only the sum of squares overflows, or if the model run once more is finite.
    """

    def __init__(
        self,
        kind: NonFiniteKind,
        value: float,
        names: Sequence[str],
        *,
        ranks: Sequence[int],
        losses: Mapping[str, list[float]],
    ) -> None:
        self.kind = kind
        self.value = value
        self.names = tuple(names)
        self.ranks = tuple(ranks)
        why = f"the {kind} is {value}"
        if names:
            why += f", first in {'layer' if kind == 'loss' else 'gradients of'} {', '.join(names)}"
            why += f" on rank {', '.join(map(str, ranks))}"
        figure, grad_norm = ("loss", math.nan) if kind == "loss" else ("grad_norm", value)
        # As text: JSON has no number for it.
        details = {"figure": figure, "value": str(value), "names": [*names], "ranks": [*ranks]}
        super().__init__(why, details, losses=losses, grad_norm=grad_norm)


def non_finite_names(named_tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """Names of the first few tensors with a NaN or an infinity in them."""
    names: list[str] = []
    for name, tensor in named_tensors:
        if _is_bad(tensor):
            names.append(name)
        if len(names) == LARGEST_NUMBER_OF_NAMES:
            break
    return names


@torch.no_grad()
def first_non_finite_module(module: nn.Module, inputs: Sequence[torch.Tensor]) -> list[str]:
    """Run `module` once more, in evaluation mode; name the first submodule with a bad output.

    Children finish before their parents, so the first one is the innermost. Empty if the second
    run is finite (the fault was not in the data or the weights) or only `module` itself is bad.
    A submodule with `used_rows(*inputs)` is judged by that many rows: the others hold anything.
    """
    found: list[str] = []

    def watch(name: str, child: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if found:
            return
        used_rows = getattr(child, "used_rows", None)
        if used_rows is not None:
            output = output[: used_rows(*inputs)]
        if any(_is_bad(tensor) for tensor in (output if isinstance(output, tuple) else (output,))):
            found.append(name)

    handles = [
        child.register_forward_hook(
            lambda child, inputs, output, name=name: watch(name, child, inputs, output)
        )
        for name, child in module.named_modules()
        if name
    ]
    was_training = module.training
    module.eval()
    try:
        module(*inputs)
    finally:
        module.train(was_training)
        for handle in handles:
            handle.remove()
    return found


def _is_bad(output: object) -> bool:
    return (
        isinstance(output, torch.Tensor)
        and output.is_floating_point()
        and not bool(torch.isfinite(output).all())
    )
