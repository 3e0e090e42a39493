"""Non-finite losses and gradients: the error, and where they come from."""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import nn

from dsv3.errors import NumericHealthError, Problem

NonFiniteKind = Literal["loss", "gradient norm"]

LARGEST_NUMBER_OF_NAMES = 5


class NonFiniteError(NumericHealthError):
    """A loss or gradient norm is NaN or infinite; no weight, moment or counter has changed.

    `kind` says which and `value` what it was; `names` are the first module whose output is not
    finite (loss), or the first parameters whose gradients are not (norm; none if every gradient is
    finite and only the sum of squares overflows).
    """

    def __init__(self, kind: NonFiniteKind, value: float, names: Sequence[str]) -> None:
        self.kind = kind
        self.value = value
        self.names = tuple(names)
        origin = "module" if kind == "loss" else "gradients"
        where = f" (first in {origin} {', '.join(self.names)})" if self.names else ""
        super().__init__(
            Problem("", f"the {kind} is {value}{where}", "the weights are as before this step")
        )


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
    """
    found: list[str] = []

    def watch(name: str, output: object) -> None:
        tensors = output if isinstance(output, tuple) else (output,)
        if not found and any(_is_bad(tensor) for tensor in tensors):
            found.append(name)

    handles = [
        child.register_forward_hook(lambda _m, _i, output, name=name: watch(name, output))
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
