"""Replicas: whether the weights a rank computes with are the masters of the ranks that own them.

ZeRO shares every update out, so that all ranks hold what the owner's master rounds to, bit for bit.
A rank where that is not so has computed something else than the others, and nothing would say so.
Because an update writes all weights anew, a comparison is worth most just before one.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dsv3.engine.collective import RankCollective
from dsv3.engine.zero import FlatGroup

CHUNK_ELEMENTS = 1 << 20  # bounds what is held in memory beside the weights
ROW_WORDS = 512
_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}  # by bytes


class Difference(NamedTuple):
    """What a rank holds that is not what it ought to be, in bits."""

    rank: int
    part: str  # "weights", or "masters" if they are what all ranks differ from
    name: str  # of the first parameter that differs
    element: int  # the first one, in this rank's flattened parameter
    differing: int  # elements, in a partition of one owner

    def __str__(self) -> str:
        return (
            f"rank {self.rank}: {self.differing} of its {self.part} differ from the other copy,"
            f" first element {self.element} of {self.name}"
        )


def fingerprint(flat: Tensor, dtype: torch.dtype) -> Tensor:
    """Int64 scalar over the bits of `flat` [N] rounded to `dtype`; one flipped bit changes it.

    Sums of words, those of each row times an odd number, modulo 2^64: a flipped bit b changes it by
    an odd multiple of 2^b, which is never 0. Exact, so the order of summation does not matter.
    """
    size = flat.numel() * dtype.itemsize
    word = next(kind for width, kind in _WORDS.items() if size % width == 0)
    odd = torch.arange(1, 2 * CHUNK_ELEMENTS // ROW_WORDS + 2, 2, device=flat.device)
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for number, chunk in enumerate(flat.detach().split(CHUNK_ELEMENTS)):
        words = chunk.to(dtype).view(word)
        rows = words[: len(words) - len(words) % ROW_WORDS].view(-1, ROW_WORDS).sum(1)
        rest = words[len(rows) * ROW_WORDS :].sum()
        total += ((rows * odd[: len(rows)]).sum() + rest * odd[len(rows)]) * (2 * number + 1)
    return total


def differences(
    groups: list[FlatGroup], name: Callable[[nn.Parameter], str], device: torch.device
) -> list[Difference]:
    """Compare all groups over all ranks (collective); the same list on every rank."""
    here = [
        (index, owner)
        for index, group in enumerate(groups)
        for owner, same in enumerate(_same_as_owners(group))
        if not same
    ]
    found = torch.tensor(len(here), device=device)
    dist.all_reduce(found)
    if int(found) == 0:
        return []
    return _describe(groups, here, name, device)


def _same_as_owners(group: FlatGroup) -> list[bool]:
    """By partition: whether this rank's weights have the fingerprint of their owner's master."""
    size, dtype = group.master.numel(), group.weights.dtype
    ours = torch.stack([fingerprint(part, dtype) for part in group.weights.detach().split(size)])
    owners = torch.empty_like(ours)
    dist.all_gather_into_tensor(owners, fingerprint(group.master, dtype).view(1), group=group.ranks)
    same: list[bool] = (ours == owners).tolist()
    return same


def _describe(
    groups: list[FlatGroup],
    here: list[tuple[int, int]],
    name: Callable[[nn.Parameter], str],
    device: torch.device,
) -> list[Difference]:
    """Have the owners send what they have; every rank says where it differs, and hears of all."""
    collective, rank = RankCollective(device), dist.get_rank()
    wanted = [[dist.get_process_group_ranks(groups[i].ranks), i, owner] for i, owner in here]
    of_ranks = [one for of_rank in collective.all_gather(wanted) for one in of_rank]
    rows: list[list[object]] = []
    # Ranks outside a group have no part in its broadcasts; those inside all go in this order.
    for ranks, index, owner in sorted(
        one for at, one in enumerate(of_ranks) if one not in of_ranks[:at]
    ):
        if rank not in ranks:
            continue
        group, source = groups[index], ranks[owner]
        first, count = _compare(group, owner, source)
        # All of several replicas cannot have the same fault, so it is the owner's masters.
        by_owner = len(ranks) > 1 and of_ranks.count([ranks, index, owner]) == len(ranks)
        if count > 0 and (not by_owner or rank == source):
            parameter, element = _at(group, first)
            part = "masters" if by_owner else "weights"
            rows.append([rank, part, name(parameter), element, count])
    gathered = collective.all_gather(rows)
    return [Difference(*row) for of_rank in gathered for row in of_rank]


def _compare(group: FlatGroup, owner: int, source: int) -> tuple[int, int]:
    """Where in `weights` this rank first differs from the owner's master, in how many elements."""
    size = group.master.numel()
    mine = group.weights.detach().split(size)[owner]
    owned = group.master.detach() if dist.get_rank() == source else None
    first, count = -1, 0
    for begin in range(0, size, CHUNK_ELEMENTS):
        chunk = mine[begin : begin + CHUNK_ELEMENTS]
        sent = torch.empty_like(chunk)
        if owned is not None:
            sent.copy_(owned[begin : begin + CHUNK_ELEMENTS])
        dist.broadcast(sent, src=source, group=group.ranks)
        unequal = _bits(chunk) != _bits(
            sent
        )  # not as numbers: a NaN differs from itself, -0 equals 0
        if first < 0 and bool(unequal.any()):
            first = owner * size + begin + int(unequal.int().argmax())
        count += int(unequal.sum())
    return first, count


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(_WORDS[tensor.element_size()])


def _at(group: FlatGroup, element: int) -> tuple[nn.Parameter, int]:
    """The parameter that holds an element of the flat weights, and its place in there."""
    for parameter, first in _places(group):
        if first <= element < first + parameter.numel():
            return parameter, element - first
    raise AssertionError(f"{element=} is padding")


def _places(group: FlatGroup) -> Iterator[tuple[nn.Parameter, int]]:
    for parameter in group.parameters:
        distance = parameter.data_ptr() - group.weights.data_ptr()
        yield parameter, distance // parameter.element_size()
