"""Token streams on disk: memory-mapped shards, their hashes, and the reader that checks them."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from dsv3.errors import DataError, Problem

SHARD_TOKENS = 1 << 24  # 32 or 64 MiB: hashed in a tenth of a second when it is first touched

Ids = npt.NDArray[np.int64]
TokenType = Literal["<u2", "<u4"]


class Shard(BaseModel):
    """One file of a stream, as the manifest has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    tokens: int
    sha256: str


def token_type(vocab_size: int) -> TokenType:
    """The smallest little-endian unsigned type that holds every id."""
    return "<u2" if vocab_size <= 2**16 else "<u4"


class ShardWriter:
    """Appends tokens to shards of equal length; `shards` is complete after the `with` block."""

    def __init__(self, directory: Path, name: str, dtype: TokenType) -> None:
        self.shards: list[Shard] = []
        self._directory, self._name, self._dtype = directory, name, dtype
        self._open()

    def _open(self) -> None:
        self._path = self._directory / f"{self._name}-{len(self.shards):05d}.bin"
        self._file = self._path.open("wb")
        self._hash = hashlib.sha256()
        self._tokens = 0

    def append(self, ids: npt.NDArray[np.unsignedinteger]) -> None:
        """Append ids, beginning a new shard wherever one is full."""
        while len(ids) > 0:
            if self._tokens == SHARD_TOKENS:
                self._finish()
                self._open()
            part = ids[: SHARD_TOKENS - self._tokens]
            content = part.astype(self._dtype).tobytes()
            self._file.write(content)
            self._hash.update(content)
            self._tokens += len(part)
            ids = ids[len(part) :]

    def _finish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self.shards.append(
            Shard(name=self._path.name, tokens=self._tokens, sha256=self._hash.hexdigest())
        )

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish()
        else:
            self._file.close()


class TokenStream:
    """The tokens of a split, mapped from its shards.

    Sizes are checked when it is opened, the content of a shard when it is first touched; a damaged
    one raises DataError that names it.
    """

    def __init__(
        self, directory: Path, shards: Sequence[Shard], dtype: TokenType, vocab_size: int
    ) -> None:
        self._directory, self._shards, self._dtype = directory, tuple(shards), dtype
        self._vocab_size = vocab_size
        self._maps: dict[int, npt.NDArray[np.unsignedinteger]] = {}
        self._ends = np.cumsum([0, *(shard.tokens for shard in shards)])
        for shard in self._shards:
            self._check_size(shard)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def slice(self, start: int, stop: int) -> Ids:
        """Token ids [stop - start]; 0 <= start <= stop <= len."""
        assert 0 <= start <= stop <= len(self), f"{start=} {stop=} {len(self)=}"
        out = np.empty(stop - start, dtype=np.int64)
        index = int(np.searchsorted(self._ends, start, side="right")) - 1
        at = start
        while at < stop:
            begin, end = int(self._ends[index]), min(int(self._ends[index + 1]), stop)
            out[at - start : end - start] = self._map(index)[at - begin : end - begin]
            at, index = end, index + 1
        return out

    def _map(self, index: int) -> npt.NDArray[np.unsignedinteger]:
        mapped = self._maps.get(index)
        if mapped is None:
            shard = self._shards[index]
            self._check_size(shard)
            mapped = np.memmap(self._directory / shard.name, dtype=self._dtype, mode="r")
            self._check_content(shard, mapped)
            self._maps[index] = mapped
        return mapped

    def _check_size(self, shard: Shard) -> None:
        expected = shard.tokens * np.dtype(self._dtype).itemsize
        path = self._directory / shard.name
        found = path.stat().st_size if path.is_file() else None
        if found != expected:
            what = "is missing" if found is None else f"has {found} bytes"
            raise damaged(path, f"{what}, its manifest says {expected}")

    def _check_content(self, shard: Shard, ids: npt.NDArray[np.unsignedinteger]) -> None:
        path = self._directory / shard.name
        if hashlib.sha256(ids.data).hexdigest() != shard.sha256:
            raise damaged(path, "its content is not what was written")
        largest = int(ids.argmax())
        if int(ids[largest]) >= self._vocab_size:
            rule = f"token {int(ids[largest])} at offset {largest} is outside the vocabulary"
            raise damaged(path, f"{rule} of {self._vocab_size}")


def damaged(path: Path, rule: str) -> DataError:
    """The error for prepared text that is not what was written."""
    return DataError(Problem(str(path), rule, f"remove {path.parent} and ask again"))
