"""Fragments of torch tensors into bytes, and back from safetensors files."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from dsv3.checkpoint.manifest import DtypeName, TensorRecord, part_names
from dsv3.checkpoint.reader import Checkpoint, TensorSpec
from dsv3.checkpoint.writer import Entry
from dsv3.errors import CheckpointError, NumericHealthError
from dsv3.files import Chunk

CHUNK_ELEMENTS = 1 << 22  # bounds what is held in memory beside the tensors themselves
_BF16_EXPONENT = 0x7F80

DTYPE_NAMES: dict[torch.dtype, DtypeName] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Fragment(Protocol):
    """A contiguous slice of a global tensor and the memory of this rank that holds it."""

    @property
    def key(self) -> str:
        """Name of the global tensor, as "master/model.norm.weight"."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the global tensor."""

    @property
    def offset(self) -> int:
        """First element of the slice in the flattened global tensor."""

    @property
    def data(self) -> torch.Tensor:
        """1-D view: reading it saves, writing it loads."""

    @property
    def saved_here(self) -> bool:
        """False where another rank saves the same elements."""


def entries(fragments: Iterable[Fragment]) -> list[Entry]:
    """What this rank writes, in the order given.

    Taking the chunks raises NumericHealthError at the first that is not finite: no run could go on
    from it.
    """
    return [
        Entry(fragment.key, _record(fragment), _chunks(fragment.key, fragment.data))
        for fragment in fragments
        if fragment.saved_here
    ]


def specs(tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> dict[str, TensorSpec]:
    """Global shapes and dtypes in the terms of a manifest."""
    return {key: TensorSpec(shape, DTYPE_NAMES[dtype]) for key, (shape, dtype) in tensors.items()}


def read_into(checkpoint: Checkpoint, fragments: Iterable[Fragment]) -> None:
    """Fill the fragments from whatever parts hold their elements, at whatever cut.

    The checkpoint must be verified, and its tensors be the expected ones (`Checkpoint.require`).
    Raises CheckpointError; what was filled before stays filled.
    """
    stored = _by_key(checkpoint)
    reads: dict[int, list[Read]] = defaultdict(list)  # by rank, so that each file is opened once
    for fragment in fragments:
        pieces = stored.get(fragment.key)
        found = (
            None if pieces is None else TensorSpec(pieces[0].record.shape, pieces[0].record.dtype)
        )
        wanted = TensorSpec(fragment.shape, DTYPE_NAMES[fragment.data.dtype])
        if pieces is None or found != wanted:  # copy_ would cast without a word
            raise CheckpointError(f"{fragment.key}: expected {wanted}, found {found or 'nothing'}")
        for read in _intersect(pieces, fragment):
            reads[read.rank].append(read)
    for rank, wanted_reads in reads.items():
        _read_part(checkpoint, rank, wanted_reads)


class Stored(NamedTuple):
    """A fragment in a file."""

    rank: int
    record: TensorRecord


class Read(NamedTuple):
    """Elements to copy from a rank's file."""

    rank: int
    key: str
    first: int  # in the file's tensor
    destination: torch.Tensor


def _by_key(checkpoint: Checkpoint) -> dict[str, list[Stored]]:
    stored: dict[str, list[Stored]] = defaultdict(list)
    for part in checkpoint.parts:
        for key, record in part.tensors.items():
            stored[key].append(Stored(part.rank, record))
    for pieces in stored.values():
        pieces.sort(key=lambda piece: piece.record.offset)
    return stored


def _intersect(pieces: list[Stored], fragment: Fragment) -> Iterator[Read]:
    end = fragment.offset + fragment.data.numel()
    index = bisect_right(pieces, fragment.offset, key=lambda piece: piece.record.offset) - 1
    for rank, record in pieces[max(index, 0) :]:
        if record.offset >= end:
            return
        low = max(record.offset, fragment.offset)
        high = min(record.offset + record.length, end)
        if low < high:
            destination = fragment.data[low - fragment.offset : high - fragment.offset]
            yield Read(rank, fragment.key, low - record.offset, destination)


def _read_part(checkpoint: Checkpoint, rank: int, reads: list[Read]) -> None:
    path = checkpoint.path / part_names(rank)[1]
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for read in reads:
                stored, first = file.get_slice(read.key), read.first
                for part in torch.split(read.destination, CHUNK_ELEMENTS):
                    part.copy_(stored[first : first + part.numel()])
                    first += part.numel()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _record(fragment: Fragment) -> TensorRecord:
    return TensorRecord(
        shape=tuple(fragment.shape),
        dtype=DTYPE_NAMES[fragment.data.dtype],
        offset=fragment.offset,
        length=fragment.data.numel(),
    )


def _chunks(key: str, data: torch.Tensor) -> Iterator[Chunk]:
    assert data.ndim == 1 and data.is_contiguous(), f"{data.shape=} {data.stride()=}"
    for chunk in torch.split(data.detach(), CHUNK_ELEMENTS):
        here = chunk.cpu()
        if not _is_finite(here):
            raise NumericHealthError(f"{key} is not finite")
        yield here.view(torch.uint8).numpy().data


def _is_finite(chunk: torch.Tensor) -> bool:
    """Whether no element is a NaN or an infinity; by numpy, whose only thread is the caller's.

    Torch would start a team of threads for whoever saves, beside the one that trains.
    """
    if not chunk.is_floating_point():
        return True
    if chunk.dtype is torch.bfloat16:  # all ones in the exponent
        bits = chunk.view(torch.int16).numpy()
        return not bool(((bits & _BF16_EXPONENT) == _BF16_EXPONENT).any())
    return bool(np.isfinite(chunk.numpy()).all())
