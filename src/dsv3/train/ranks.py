"""The ranks that train together: who this one is, and the small exchanges between them."""

import torch
import torch.distributed as dist
from torch import Tensor

from dsv3.config.parallelism import ParallelismConfig
from dsv3.engine.collective import RankCollective
from dsv3.parallel.mesh import Place, place_of


class Ranks(RankCollective):
    """All ranks of a run, once the process group is there; a lone rank exchanges nothing.

    Every method but the properties is collective: all ranks call it, in the same order.
    """

    def __init__(self, layout: ParallelismConfig, device: torch.device) -> None:
        super().__init__(device)
        self.device = device
        self.place: Place = place_of(layout, self.rank)

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what a run has once: its lines, its events, its result."""
        return self.rank == 0

    def sum(self, counts: Tensor) -> Tensor:
        """The sum over all ranks, exact for integers; the argument is left as it is."""
        if self.size == 1:
            return counts
        total = counts.to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(counts.device)

    def largest(self, *numbers: int) -> list[int]:
        """The largest of the ranks' first numbers, of their second ones, and so on."""
        if self.size == 1:
            return list(numbers)
        values = torch.tensor(numbers, device=self.device)
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        found: list[int] = values.tolist()
        return found
