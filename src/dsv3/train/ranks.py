"""The ranks that train together: who this one is, and the small exchanges between them."""

import json
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Json = Any  # None, bool, int, float, str, list and dict with string keys, nested


class Ranks:
    """All ranks of a run, once the process group is there; a lone rank exchanges nothing.

    Every method but the properties is collective: all ranks call it, in the same order.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._device = device

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what a run has once: its lines, its events, its result."""
        return self.rank == 0

    def sum(self, counts: Tensor) -> Tensor:
        """The sum over all ranks, exact for integers; the argument is left as it is."""
        if self.size == 1:
            return counts
        total = counts.to(self._device, copy=True)
        dist.all_reduce(total)
        return total.to(counts.device)

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        if self.size == 1:
            return number
        value = torch.tensor(number, device=self._device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return int(value)

    def all_gather(self, value: Json) -> list[Json]:
        """Every rank's value, in the order of the ranks; as JSON, for nothing pickled is read."""
        if self.size == 1:
            return [value]
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = self.largest(len(content))
        own = torch.zeros(length, dtype=torch.uint8)  # JSON ends where zero bytes begin
        own[: len(content)] = content
        own = own.to(self._device)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own)
        return [json.loads(bytes(part.cpu().numpy()).rstrip(b"\0")) for part in parts]
