"""Transformer Engine's products noted where they happen, from the operands they are given.

Its modules look up `general_gemm` and `general_grouped_gemm` as names of their own files; these are
replaced once by functions that call them and, while somebody records, note what they were given.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any, Final

import torch
from torch import Tensor

from dsv3.config.precision import PrecisionConfig
from dsv3.ops.fp8 import BLOCKS, COLUMNS, LARGEST_E4M3, LARGEST_LOST, ROWS, Shape, range_of
from dsv3.ops.gemm_log import Gemm, GemmKind, Range, Role, is_recording, note, note_range

UNKNOWN: Final = "unknown"
"""Whose products those are that no layer of ours has asked for."""

_MODULES: Final = {"linear": "general_gemm", "grouped_linear": "general_grouped_gemm"}
_KINDS: Final[dict[str, GemmKind]] = {"TN": "fprop", "NN": "dgrad", "NT": "wgrad"}
_SHORT: Final = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
# Largest number, and half of the smallest step: what is not above it becomes zero.
_E4M3: Final = (LARGEST_E4M3, LARGEST_LOST)
_E5M2: Final = (57344.0, 2.0**-17)


class _Current(threading.local):
    """The layer whose products run on this thread: autograd has one of its own for each GPU."""

    layer = UNKNOWN


_current = _Current()


@contextmanager
def running(layer: str) -> Iterator[None]:
    """Products inside are those of a layer; what was before is so again after it.

    A forward pass may run inside of another layer's backward pass, which recomputes it.
    """
    before, _current.layer = _current.layer, layer
    try:
        yield
    finally:
        _current.layer = before


def label_backward(node: torch.autograd.graph.Node, layer: str) -> None:
    """Products of this node of the graph are those of a layer: it runs right after its prehooks."""

    def begin(_gradients: Sequence[Tensor]) -> None:
        _current.layer = layer

    def end(_inputs: Sequence[Tensor], _outputs: Sequence[Tensor]) -> None:
        _current.layer = UNKNOWN

    node.register_prehook(begin)
    node.register_hook(end)


def watch_products() -> None:
    """Have Transformer Engine's linear layers note their products; once is enough."""
    for file, function in _MODULES.items():
        module = import_module(f"transformer_engine.pytorch.module.{file}")
        gemm = getattr(module, function)
        if not getattr(gemm, "notes_products", False):
            setattr(module, function, _noting(gemm))


def _noting(gemm: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(gemm)

    @functools.wraps(gemm)
    def noting(*arguments: Any, **named: Any) -> Any:
        # Before the product: it may let go of operands that nobody needs after it.
        if is_recording():
            call = signature.bind(*arguments, **named)
            call.apply_defaults()
            _note(call.arguments)
        return gemm(*arguments, **named)

    noting.notes_products = True  # type: ignore[attr-defined]
    return noting


def _note(call: dict[str, Any]) -> None:
    """Note one call; of a grouped one, whose operands are lists, every combination of formats.

    Transformer Engine's A is our right operand: it multiplies as cuBLAS does, by columns.
    """
    layout, out, dtype = call["layout"], call["out"], call["out_dtype"]
    kind = _KINDS[layout]
    rights, lefts = (x if isinstance(x, list | tuple) else (x,) for x in (call["A"], call["B"]))
    if out is not None:
        dtype = (out[0] if isinstance(out, list | tuple) else out).dtype
    rights_by_row, lefts_by_row = layout[0] == "T", layout[1] == "N"
    output = _short(dtype) if dtype is not None else _short(lefts[0].dtype)
    formats = {
        (format_of(left, by_row=lefts_by_row), format_of(right, by_row=rights_by_row))
        for left, right in zip(lefts, rights, strict=True)
    }
    for left, right in sorted(formats):
        note(Gemm(_current.layer, kind, left, right, output))


def format_of(operand: Any, *, by_row: bool) -> str:
    """What an operand is in, of its two copies the one that is read: `e4m3 1x128 power_of_two`."""
    from transformer_engine.pytorch import (
        Float8BlockwiseQTensorStorage,
        Float8TensorStorage,
        MXFP8TensorStorage,
        QuantizedTensorStorage,
    )

    if not isinstance(operand, QuantizedTensorStorage):
        return _short(operand.dtype)
    match operand:
        case Float8BlockwiseQTensorStorage():
            line = "1x128" if by_row else "128x1"
            tile = "128x128" if operand._is_2D_scaled else line
        case MXFP8TensorStorage():
            return f"{_eight_bits(operand)} {'1x32' if by_row else '32x1'} power_of_two"
        case Float8TensorStorage():
            tile = "tensor"
        case _:
            return type(operand).__name__
    rounded = operand._quantizer.force_pow_2_scales
    return f"{_eight_bits(operand)} {tile} {'power_of_two' if rounded else 'fp32'}"


def _eight_bits(operand: Any) -> str:
    return "e4m3" if "E4M3" in operand._fp8_dtype.name else "e5m2"


def _short(dtype: torch.dtype) -> str:
    return _SHORT.get(dtype, str(dtype).removeprefix("torch."))


def note_ranges(
    precision: PrecisionConfig, layer: str, tensors: dict[Role, Sequence[Tensor]]
) -> None:
    """Note how operands fit FP8: the tensors of each role as they are quantised, one by one.

    From the tensors and not from their codes: a zero does not say what it was. The quantiser is
    ours, which has Transformer Engine's scales to the bit; MXFP8's are those of 32 elements.
    """
    if not is_recording() or not precision.is_fp8:
        return
    for role, parts in tensors.items():
        for part in parts:
            note_range(layer, role, partial(_range, precision, role, part.detach().flatten(0, -2)))


def _range(precision: PrecisionConfig, role: Role, x: Tensor) -> Range:
    rounded = precision.scales == "power_of_two"
    if precision.recipe == "fp8_current":
        of_gradient = role in ("gradient", "gradient for weights")
        return _range_of_whole(x, *(_E5M2 if of_gradient else _E4M3), rounded=rounded)
    length = 32 if precision.recipe == "mxfp8" else 128
    tiles: dict[Role, Shape] = {
        "input": ROWS,
        "weight": BLOCKS if length == 128 else ROWS,
        "gradient": ROWS,
        "gradient for weights": COLUMNS,
    }
    tile = tiles[role]
    shape = tile if length == 128 else (min(tile[0], length), min(tile[1], length))
    return range_of(x, shape, rounded)


def _range_of_whole(x: Tensor, largest: float, lost: float, *, rounded: bool) -> Range:
    """How a tensor fits a format with one scale for all of it."""
    if x.numel() == 0:
        return Range(0.0, 1.0, 1.0, 0.0, 0.0)
    amax = x.float().abs().amax()
    scale = torch.where(amax > 0, torch.div(torch.full_like(amax, largest), amax), 1.0)
    scale = torch.where(scale.isfinite(), scale, 1.0)
    if rounded:
        scale = scale.log2().floor().exp2()
    scaled = x.float().abs() * scale
    return Range(
        amax=float(amax),
        smallest_scale=float(scale),
        largest_scale=float(scale),
        overflow=float((scaled > largest).float().mean()),
        underflow=float(((x != 0) & (scaled <= lost)).float().mean()),
    )
