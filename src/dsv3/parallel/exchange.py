"""Rows between the ranks of a group, in uneven numbers; differentiable, every byte counted."""

import math
import time
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

from dsv3.parallel.spans import span
from dsv3.parallel.wire import dequantise, quantise

HOPS = ("counts", "dispatch", "combine", "combine_backward", "dispatch_backward")
"""The messages of one MoE layer, in the order in which they are sent."""


class Splits(NamedTuple):
    """Rows to and from each rank, in the order of the group."""

    sent: list[int]
    received: list[int]

    def back(self) -> "Splits":
        """The same rows on their way home."""
        return Splits(self.received, self.sent)


class Traffic(NamedTuple):
    """What went over the wire, by hop; see HOPS."""

    sent_bytes: dict[str, int]  # to other ranks: rows that stay at home travel nowhere
    calls: dict[str, int]
    seconds: dict[str, float]  # the host waited; on a GPU, where calls return at once, means little

    @classmethod
    def none(cls) -> "Traffic":
        """Nothing yet."""
        return cls(dict.fromkeys(HOPS, 0), dict.fromkeys(HOPS, 0), dict.fromkeys(HOPS, 0.0))


class Exchange:
    """All-to-all over one process group, gloo or NCCL; calls are collective and in one order."""

    def __init__(self, group: torch.distributed.ProcessGroup) -> None:
        self._group = group
        self.rank = torch.distributed.get_rank(group)
        self.size = torch.distributed.get_world_size(group)
        self._traffic = Traffic.none()

    def take_traffic(self) -> Traffic:
        """What was sent since the last call."""
        taken, self._traffic = self._traffic, Traffic.none()
        return taken

    def counts(self, counts_E: Tensor) -> tuple[Tensor, Splits]:
        """Tell every rank how many rows its experts get from here; hear how many come.

        From the rows for each expert of the group, int64 [E], to the rows from each rank for each
        expert held here, [size, e], and the sums. The sums need one wait for the device.
        """
        sent = counts_E.view(self.size, -1)
        received = torch.empty_like(sent)
        self._all_to_all("counts", received, sent, Splits([1] * self.size, [1] * self.size))
        sums = torch.stack((sent.sum(dim=1), received.sum(dim=1)))
        return received, Splits(*sums.tolist())

    def rows(
        self, hop: str, splits: Splits, *columns: Tensor, fp8: bool, fp8_back: bool
    ) -> tuple[Tensor, ...]:
        """Send rows, first those for rank 0, and receive rows, first those from rank 0.

        A row is one entry of every column, [A, ...]; all of it travels in one message. With `fp8`
        the first column travels as FP8 (see wire.py), with `fp8_back` its gradient does.
        """
        arrived: tuple[Tensor, ...] = _Rows.apply(self, hop, splits, fp8, fp8_back, *columns)  # type: ignore[no-untyped-call]
        return arrived

    def send(self, hop: str, splits: Splits, columns: tuple[Tensor, ...], fp8: bool) -> Any:
        """`rows` without a gradient."""
        first, *others = columns
        if not fp8:
            return self._send(hop, splits, columns)
        *quantised, width = *quantise(first), first.shape[1]
        codes, scales, *arrived = self._send(hop, splits, (*quantised, *others))
        return dequantise(codes, scales, width=width, dtype=first.dtype), *arrived

    def _send(self, hop: str, splits: Splits, columns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if len(columns) == 1:
            packed = columns[0].contiguous()
        else:
            packed = torch.cat([_as_bytes(column) for column in columns], dim=1)
        arrived = packed.new_empty((sum(splits.received), *packed.shape[1:]))
        self._all_to_all(hop, arrived, packed, splits)
        if len(columns) == 1:
            return (arrived,)
        widths = [_as_bytes(column[:0]).shape[1] for column in columns]
        parts = zip(arrived.split(widths, dim=1), columns, strict=True)
        return tuple(_of_bytes(part, like=column) for part, column in parts)

    def _all_to_all(self, hop: str, into: Tensor, rows: Tensor, splits: Splits) -> None:
        began_s = time.perf_counter()
        with span("all_to_all", hop):
            torch.distributed.all_to_all_single(
                into, rows, splits.received, splits.sent, group=self._group
            )
        self._traffic.seconds[hop] += time.perf_counter() - began_s
        away = sum(splits.sent) - splits.sent[self.rank]
        self._traffic.sent_bytes[hop] += away * math.prod(rows.shape[1:]) * rows.itemsize
        self._traffic.calls[hop] += 1


class _Rows(torch.autograd.Function):
    """The gradient of a row is what comes back on the way it went."""

    @staticmethod
    def forward(
        ctx: Any,
        exchange: Exchange,
        hop: str,
        splits: Splits,
        fp8: bool,
        fp8_back: bool,
        *columns: Tensor,
    ) -> Any:
        ctx.way = (exchange, f"{hop}_backward", splits.back())
        ctx.fp8_back = fp8_back
        return exchange.send(hop, splits, columns, fp8)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        exchange, hop, back = ctx.way
        return *(None,) * 5, *exchange.send(hop, back, gradients, ctx.fp8_back)


def _as_bytes(column: Tensor) -> Tensor:
    """[A, ...] of any type as bytes, [A, n]."""
    flat = column.unsqueeze(1) if column.ndim == 1 else column
    return flat.contiguous().view(torch.uint8)


def _of_bytes(part: Tensor, *, like: Tensor) -> Tensor:
    # A copy, because a view would have to begin at a multiple of its type's size.
    typed = part.clone(memory_format=torch.contiguous_format).view(like.dtype)
    return typed.squeeze(1) if like.ndim == 1 else typed
