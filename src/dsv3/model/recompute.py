"""Recomputation: activations made again in the backward pass instead of being kept for it.

The same functions run on the same values, so no bit of a loss or a gradient depends on it. Three
ways, by what is worth dropping: a whole region (torch's checkpoint), a region but for what is dear
to make (`selective`), or the result of something cheap, whoever reads it (`remade`).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import dsv3.ops.attention
import dsv3.ops.fp8_linear  # noqa: F401 - registers dsv3::fp8_linear

ResultT = TypeVar("ResultT")

_aten = torch.ops.aten
KEPT = {
    _aten.mm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.dsv3.kept_attention.default,
    torch.ops.dsv3.fp8_linear.default,
}
"""Operators whose results `kept` keeps: products and attention, not the views and sums around."""

_keeping: ContextVar[bool] = ContextVar("keeping", default=False)


def whole(function: Callable[..., ResultT], *arguments: Any) -> ResultT:
    """Call `function`, and again in the backward pass: of what is inside, nothing is kept."""
    result: ResultT = checkpoint(
        function, *arguments, use_reentrant=False, preserve_rng_state=False
    )
    return result


def selective(function: Callable[..., ResultT], *arguments: Any) -> ResultT:
    """The same, but what `function` computes inside of `kept` is kept and not computed again."""
    result: ResultT = checkpoint(
        function,
        *arguments,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=partial(create_selective_checkpoint_contexts, _policy),
    )
    return result


def kept() -> AbstractContextManager[None]:
    """What a `selective` region around it keeps; without one it changes nothing."""
    # A compiler cannot see through the variable, and such regions are not compiled.
    return nullcontext() if torch.compiler.is_compiling() else _kept()


@contextmanager
def _kept() -> Iterator[None]:
    token = _keeping.set(True)
    try:
        yield
    finally:
        _keeping.reset(token)


@contextmanager
def remade(function: Callable[..., Tensor], *inputs: Tensor) -> Iterator[Tensor]:
    """Yield `function(*inputs)`, made again for every operation inside that keeps it for backward.

    Only the result is dropped: what `function` keeps for its own backward pass stays, so it should
    be little beside `inputs`. An operation keeps the result if it keeps a view of it; a copy, as of
    another type, is the copy's own matter.
    """
    result = function(*inputs)
    if not torch.is_grad_enabled():
        yield result
        return
    source = _Source(function, tuple(each.detach() for each in inputs))
    # By the storage itself: the address of its data says nothing of tensors without any.
    storage, dtype = result.untyped_storage()._cdata, result.dtype

    def pack(tensor: Tensor) -> "Tensor | _View":
        # Must not know `result`: autograd holds on to this function.
        if tensor.untyped_storage()._cdata != storage or tensor.dtype != dtype:
            # Detached: an operation that keeps its own result would else keep itself for ever.
            return tensor.detach()
        source.readers += 1
        return _View(tensor.shape, tensor.stride(), tensor.storage_offset())

    def unpack(packed: "Tensor | _View") -> Tensor:
        return source.read(packed) if isinstance(packed, _View) else packed

    with saved_tensors_hooks(pack, unpack):
        yield result


class _View(NamedTuple):
    """Where a tensor lies in the storage of the result."""

    shape: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt


class _Source:
    """Makes the result again at the first reading of a backward pass, lets go of it at the last."""

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
        self._function, self._inputs = function, inputs
        self._result: Tensor | None = None
        self._read = 0
        self.readers = 0

    def read(self, view: _View) -> Tensor:
        if self._result is None:
            with torch.no_grad():
                self._result = self._function(*self._inputs)
        result = self._result
        self._read += 1
        if self._read >= self.readers:
            self._result, self._read = None, 0
        return result.as_strided(view.shape, view.stride, view.offset)


def _policy(_context: Any, operator: Any, *_arguments: Any, **_named: Any) -> CheckpointPolicy:
    keep = _keeping.get() and operator in KEPT
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
