"""Tensors between the ranks of one pipeline, each kind of message in an order of its own."""

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from dsv3.parallel.spans import span

LARGEST_NUMBER_ON_THE_WAY = 64


class Mail:
    """Sends without waiting, receives in the order in which was sent.

    `holders` are the global ranks of the model's parts, in the model's order. Each lane is a group
    of the pipeline's ranks: on one lane no two ranks both send to each other, so that on a GPU,
    where a group handles one message after the other, nobody waits for somebody who waits for him.
    What goes from a part to another of the same rank is handed over.
    """

    def __init__(
        self,
        holders: Sequence[int],
        rank: int,
        lanes: Mapping[str, dist.ProcessGroup],
        device: torch.device,
    ) -> None:
        self.holders = tuple(holders)
        self._rank = rank
        self._lanes = lanes
        self._device = device
        self._on_the_way: deque[tuple[dist.Work, Tensor]] = deque()
        self._at_home: dict[tuple[str, int], deque[Tensor]] = defaultdict(deque)

    def send(self, tensor: Tensor, lane: str, to_part: int) -> None:
        """Send a tensor to the rank of a part; it must not change before `settle`."""
        target, tensor = self.holders[to_part], tensor.detach().contiguous()
        if target == self._rank:
            self._at_home[lane, to_part].append(tensor)
            return
        work = dist.isend(tensor, dst=target, group=self._lanes[lane])
        assert work is not None, "this rank is in the group"
        self._on_the_way.append((work, tensor))
        while len(self._on_the_way) > LARGEST_NUMBER_ON_THE_WAY:
            self._on_the_way.popleft()[0].wait()

    def receive(
        self, shape: Sequence[int], dtype: torch.dtype, lane: str, from_part: int, to_part: int
    ) -> Tensor:
        """The next tensor of a part for one of this rank's, as it was sent."""
        source = self.holders[from_part]
        if source == self._rank:
            return self._at_home[lane, to_part].popleft()
        tensor = torch.empty(shape, dtype=dtype, device=self._device)
        with span("wait", lane):
            dist.recv(tensor, src=source, group=self._lanes[lane])
        return tensor

    def settle(self) -> None:
        """Wait until everything sent has arrived."""
        while self._on_the_way:
            self._on_the_way.popleft()[0].wait()
        assert not any(self._at_home.values()), "a part has not taken what was handed to it"
