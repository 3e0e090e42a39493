"""JSON between all ranks, for what saves and loads together; nothing is pickled."""

import json
from typing import Any, Self

import torch
import torch.distributed


class RankCollective:
    """All ranks of the run, as the `Collective` that `checkpoint` asks for."""

    def __init__(
        self, device: torch.device | str, group: torch.distributed.ProcessGroup | None = None
    ) -> None:
        self._device = torch.device(device)  # NCCL moves tensors of the GPU only
        self._group = group

    @classmethod
    def apart(cls) -> Self:
        """All ranks over a group of their own (collective): for a thread that must not cross ours.

        Over gloo, also where the ranks train on GPUs.
        """
        return cls("cpu", torch.distributed.new_group(backend="gloo"))

    @property
    def rank(self) -> int:
        """This process, from 0."""
        return torch.distributed.get_rank()

    @property
    def size(self) -> int:
        """How many there are."""
        return torch.distributed.get_world_size()

    def all_gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of the ranks (collective)."""
        content = json.dumps(value, allow_nan=False).encode("ascii")
        lengths = self._gather(torch.tensor([len(content)])).flatten().tolist()
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        rows = zip(self._gather(padded), lengths, strict=True)
        return [json.loads(row[:length].cpu().numpy().tobytes()) for row, length in rows]

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank (collective)."""
        content = json.dumps(value, allow_nan=False).encode("ascii") if self.rank == 0 else b""
        length = torch.tensor([len(content)], device=self._device)
        torch.distributed.broadcast(length, src=0, group=self._group)
        data = torch.zeros(int(length), dtype=torch.uint8)
        if self.rank == 0:
            data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        data = data.to(self._device)
        torch.distributed.broadcast(data, src=0, group=self._group)
        return json.loads(data.cpu().numpy().tobytes())

    def _gather(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.to(self._device)
        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        torch.distributed.all_gather(gathered, tensor, group=self._group)
        return torch.stack(gathered)
