"""Bytes that operations take while they run and have given back when they return.

The trace sees what an operation is given and what it returns. What is made inside of our own
follows from their code in `ops/`, of emulated FP8 by running it (`trace_bodies.py`); experts are
taken to have equally many rows. Of torch's, a CPU's
element-wise ones convert operands of a narrower type as a whole (TensorIterator.cpp), where a GPU
does it number by number.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import dsv3.ops.attention
import dsv3.ops.experts  # noqa: F401 - both register operators
from dsv3.plan.memory_pass import Device
from dsv3.train.trace_bodies import held_inside
from dsv3.train.trace_memory import Workspace


def workspace(func: Any, args: tuple[Any, ...], device: Device) -> int:
    """Bytes inside of an operation with these arguments; zero for most."""
    if func in _ELEMENTWISE:
        return _converted(args) if device == "cpu" else 0
    found = _INSIDE.get(func)
    if found is None:
        return held_inside(func, args, _ON[device])
    return found(*args)


def _converted(args: tuple[Any, ...]) -> int:
    """Operands in the type of the widest, but those that have it; numbers are read as they are."""
    operands = [each for each in args if isinstance(each, Tensor) and each.ndim > 0]
    types = {each.dtype for each in operands}
    if len(types) < 2:
        return 0
    common = functools.reduce(torch.promote_types, types)
    return sum(each.numel() for each in operands if each.dtype != common) * common.itemsize


def _experts(
    rows_RD: Tensor, _weights: Tensor, per_expert_e: Tensor, gate_up: Tensor, _: Tensor
) -> int:
    """A gate made contiguous, and its SiLU, of one expert."""
    return 2 * _of_an_expert(rows_RD, per_expert_e, gate_up)


def _experts_backward(
    _grad: Tensor,
    rows_RD: Tensor,
    _weights: Tensor,
    per_expert_e: Tensor,
    gate_up: Tensor,
    *_: Tensor,
) -> int:
    """Of one expert: gate, up, SiLU, activation, three gradients of these, both halves in one."""
    return 9 * _of_an_expert(rows_RD, per_expert_e, gate_up)


def _of_an_expert(rows_RD: Tensor, per_expert_e: Tensor, gate_up: Tensor) -> int:
    """Bytes of [rows, F] for one expert."""
    rows = -(-rows_RD.shape[0] // per_expert_e.shape[0])
    return rows * gate_up.shape[1] // 2 * rows_RD.itemsize


def _attention(q_BHSd: Tensor, _k: Tensor, v_BHSV: Tensor) -> int:
    """Scores of the later half before their softmax, and its values."""
    half = -(-q_BHSd.shape[2] // 2)
    heads = q_BHSd.shape[0] * q_BHSd.shape[1]
    return heads * half * (q_BHSd.shape[2] + v_BHSV.shape[3]) * q_BHSd.itemsize


def _attention_backward(_grad: Tensor, q_BHSd: Tensor, k_BHSd: Tensor, *_: Tensor) -> int:
    """Gradients of probabilities and of scores of the later half."""
    half = -(-q_BHSd.shape[2] // 2)
    heads = q_BHSd.shape[0] * q_BHSd.shape[1]
    return 2 * heads * half * k_BHSd.shape[2] * q_BHSd.itemsize


_ON: dict[Device, Workspace] = {
    "cpu": functools.partial(workspace, device="cpu"),
    "cuda": functools.partial(workspace, device="cuda"),
}
_INSIDE: dict[Any, Callable[..., int]] = {
    torch.ops.dsv3.grouped_mlp.default: _experts,
    torch.ops.dsv3.grouped_mlp_backward.default: _experts_backward,
    torch.ops.dsv3.kept_attention.default: _attention,
    torch.ops.dsv3.kept_attention_backward.default: _attention_backward,
}
_ELEMENTWISE = {
    torch.ops.aten.add.Tensor,
    torch.ops.aten.add_.Tensor,
    torch.ops.aten.sub.Tensor,
    torch.ops.aten.mul.Tensor,
    torch.ops.aten.mul_.Tensor,
    torch.ops.aten.div.Tensor,
    torch.ops.aten.addcmul_.default,
}
