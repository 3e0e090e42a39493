"""Copies of a rank's fragments, to be written while training changes the fragments themselves."""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from dsv3.checkpoint.tensors import Fragment


class Copied(NamedTuple):
    """A fragment as it was; saved like the one it was copied from."""

    key: str
    shape: tuple[int, ...]
    offset: int
    data: torch.Tensor
    saved_here: bool = True


class Snapshot:
    """One copy, in memory of the host that the next copy uses again: a run needs one, not many.

    As large as what this rank saves; pinned where the fragments are a GPU's.
    """

    def __init__(self) -> None:
        self._memory: dict[str, torch.Tensor] = {}

    def take(self, fragments: Iterable[Fragment]) -> list[Copied]:
        """Copy what this rank saves; the copy before this one is overwritten."""
        before, self._memory = self._memory, {}
        copies = [
            Copied(each.key, each.shape, each.offset, self._copy(before, each))
            for each in fragments
            if each.saved_here
        ]
        if any(copy.data.is_pinned() for copy in copies):
            torch.cuda.synchronize()
        return copies

    def _copy(self, before: dict[str, torch.Tensor], fragment: Fragment) -> torch.Tensor:
        data = fragment.data.detach()
        memory = before.pop(fragment.key, None)
        if memory is None or memory.shape != data.shape or memory.dtype != data.dtype:
            memory = torch.empty(data.shape, dtype=data.dtype, pin_memory=data.is_cuda)
        self._memory[fragment.key] = memory.copy_(data, non_blocking=True)
        return memory
