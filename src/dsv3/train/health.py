"""What went wrong where, when a loss or a norm is not finite."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsv3.errors import NumericHealthError, Problem


def first_non_finite_module(
    model: nn.Module, micro_batches: Sequence[tuple[Tensor, Tensor]]
) -> str | None:
    """Name of the first submodule, in order of execution, with a non-finite output; None if none.

    Runs the forward pass once more without gradients and in evaluation mode, so that nothing
    (weights, expert counts) changes.
    """
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple) else (output,)
            finite = all(
                torch.isfinite(t).all()
                for t in tensors
                if isinstance(t, Tensor) and t.is_floating_point()
            )
            if not finite:
                found.append(name)

        return hook

    handles = [m.register_forward_hook(watch(name)) for name, m in model.named_modules() if name]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for ids, labels in micro_batches:
                model(ids, labels)
                if found:
                    return found[0]
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return None


def non_finite_error(
    what: str, value: float, step: int, where: str | None, last_checkpoint: str | None
) -> NumericHealthError:
    """Build the message: what, at which step, in which layer, and where to go on from."""
    layer = f"first seen in {where}" if where else "every layer's output is finite"
    good = f"the last good checkpoint is {last_checkpoint}" if last_checkpoint else (
        "there is no checkpoint yet"
    )
    return NumericHealthError(
        Problem(
            "",
            f"the {what} of step {step} is {value}, {layer}; the update was not applied",
            f"{good}; lower schedule.lr or optimizer.gradient_clipping and set run.tag=<name>",
        )
    )
