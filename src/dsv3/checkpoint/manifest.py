"""Manifests: the schema of what a checkpoint says about itself, and how it is read safely."""

import json
import math
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from dsv3.checkpoint.collective import Json
from dsv3.checkpoint.durable import Written, file_hash, file_size, read_chunks
from dsv3.errors import CheckpointError
from dsv3.files import reason

FORMAT_VERSION: Final = 1
ROOT_NAME = "manifest.json"
SEAL_NAME = "manifest.json.sha256"
STATE_NAME = "state.json"
LARGEST_ROOT_BYTES = 1 << 26
LARGEST_SEAL_BYTES = 200

DtypeName = Literal["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Shape = tuple[int, ...]


class ForeignCheckpointError(CheckpointError):
    """Nothing wrong with the checkpoint, perhaps, but it is not this run's or this program's."""


class Record(BaseModel):
    """Base of all manifests: no unknown keys, no coercion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Identity(Record):
    """What a checkpoint must agree on to be loaded: the run, and what its configuration computes.

    `config_sha256` leaves out what may change between two starts of a run, as its layout.
    """

    run_id: str = Field(min_length=1)
    config_sha256: Sha256


class FileRecord(Record):
    """Size and hash of a file of the checkpoint; its name follows from its role."""

    bytes: Count
    sha256: Sha256

    @classmethod
    def of(cls, written: Written) -> "FileRecord":
        """Record what was written."""
        return cls(bytes=written.bytes, sha256=written.sha256)


class TensorRecord(Record):
    """One fragment: `length` elements from `offset` on of the flattened global tensor."""

    shape: tuple[Count, ...]
    dtype: DtypeName
    offset: Count
    length: Count

    @model_validator(mode="after")
    def _inside(self) -> "TensorRecord":
        if self.offset + self.length > math.prod(self.shape):
            raise ValueError(f"{self.offset}+{self.length} is outside of {self.shape}")
        return self


class PartManifest(Record):
    """What one rank wrote."""

    format_version: Literal[1]
    run_id: str
    step: Count
    attempt: Count
    rank: Count
    file: FileRecord
    tensors: dict[str, TensorRecord]
    rank_state: dict[str, JsonValue]


class RootManifest(Record):
    """What the whole checkpoint is; `parts` are the hashes of the ranks' manifests, by rank."""

    format_version: Literal[1]
    identity: Identity
    step: Count
    optimizer_step: Count
    attempt: Count
    layout: dict[str, JsonValue]
    state: FileRecord
    parts: tuple[FileRecord, ...] = Field(min_length=1)


def part_names(rank: int) -> tuple[str, str]:
    """Names of a rank's manifest and of its tensors."""
    return f"rank-{rank:05d}.json", f"rank-{rank:05d}.safetensors"


def to_json(value: Json) -> bytes:
    """Encode a value that reads back as itself.

    Raises CheckpointError for anything else: tuples, integer keys, NaN, numpy scalars.
    """
    try:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"), sort_keys=True)
        unchanged = _same(json.loads(text), value)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"state is not JSON: {error}") from error
    if not unchanged:
        raise CheckpointError(
            "state changes its type in JSON (a tuple, or a key that is no string)"
        )
    return text.encode()


def read_json(path: Path, record: FileRecord) -> Any:
    """Read a JSON file whose bytes are those of `record`; raises CheckpointError otherwise."""
    return _parse(path, checked_bytes(path, record))


def seal_of(root: bytes) -> bytes:
    """Content of `SEAL_NAME`, in the format of sha256sum."""
    return f"{sha256(root).hexdigest()}  {ROOT_NAME}\n".encode()


def read_root(directory: Path) -> RootManifest:
    """Read the root manifest, if the checkpoint is complete; raises CheckpointError otherwise."""
    seal = _bounded(directory / SEAL_NAME, LARGEST_SEAL_BYTES)
    root = _bounded(directory / ROOT_NAME, LARGEST_ROOT_BYTES)
    if seal != seal_of(root):
        raise CheckpointError(f"{directory / ROOT_NAME}: damaged, its hash is not in {SEAL_NAME}")
    value = _parse(directory / ROOT_NAME, root)
    version = value.get("format_version") if isinstance(value, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ForeignCheckpointError(
            f"{directory}: format {version} is newer than this program's {FORMAT_VERSION}; "
            "use the dsv3 that wrote it"
        )
    return validated(RootManifest, root, directory / ROOT_NAME)


def read_part(directory: Path, root: RootManifest, rank: int) -> PartManifest:
    """Read a rank's manifest, hashed by the root and bound to the same run, step and attempt."""
    path = directory / part_names(rank)[0]
    part = validated(PartManifest, checked_bytes(path, root.parts[rank]), path)
    belongs = (part.run_id, part.step, part.attempt, part.rank)
    expected = (root.identity.run_id, root.step, root.attempt, rank)
    if belongs != expected:
        raise CheckpointError(f"{path}: run, step, attempt, rank are {belongs}, not {expected}")
    return part


def checked_bytes(path: Path, record: FileRecord) -> bytes:
    """Read a small file whole; raises CheckpointError unless size and hash are the record's."""
    require_size(path, record)
    try:
        content = b"".join(read_chunks(path))
    except OSError as error:
        raise CheckpointError(f"{path}: {reason(error)}") from error
    _require_same(path, Written(len(content), sha256(content).hexdigest()), record)
    return content


def require_size(path: Path, record: FileRecord) -> None:
    """Raise CheckpointError unless the file is there with the recorded size."""
    try:
        size = file_size(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {reason(error)}") from error
    if size != record.bytes:
        raise CheckpointError(f"{path}: damaged, {size} bytes instead of {record.bytes}")


def require_hash(path: Path, record: FileRecord) -> None:
    """Raise CheckpointError unless the file's content is the recorded one."""
    try:
        found = file_hash(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {reason(error)}") from error
    _require_same(path, found, record)


def _require_same(path: Path, found: Written, record: FileRecord) -> None:
    if FileRecord.of(found) != record:
        raise CheckpointError(f"{path}: damaged, its hash is not the one it was written with")


RecordType = TypeVar("RecordType", bound=Record)


def validated(kind: type[RecordType], content: bytes, path: Path) -> RecordType:
    """Parse JSON against a schema; raises CheckpointError."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        lines = str(error).splitlines()
        raise CheckpointError(f"{path}: malformed, {' '.join(lines[:3])}") from error


def require_tiling(directory: Path, parts: Iterable[PartManifest]) -> None:
    """Raise CheckpointError unless the fragments of every tensor cover it exactly once."""
    records: dict[str, list[TensorRecord]] = {}
    for part in parts:
        for key, record in part.tensors.items():
            records.setdefault(key, []).append(record)
    for key, pieces in records.items():
        if len({(piece.shape, piece.dtype) for piece in pieces}) > 1:
            raise CheckpointError(f"{directory}: ranks disagree on shape or dtype of {key}")
        end = 0
        for piece in sorted(pieces, key=lambda piece: piece.offset):
            if piece.offset != end:
                fault = "missing" if piece.offset > end else "there twice"
                raise CheckpointError(f"{directory}: {key} has elements {fault} at {end}")
            end += piece.length
        if end != math.prod(pieces[0].shape):
            raise CheckpointError(f"{directory}: {key} ends at element {end} of {pieces[0].shape}")


def _bounded(path: Path, largest: int) -> bytes:
    """Content of a file whose size nothing vouches for."""
    try:
        size = file_size(path)
        content = b"".join(read_chunks(path)) if size <= largest else b""
    except OSError as error:
        raise CheckpointError(f"{path}: incomplete checkpoint, {reason(error)}") from error
    if size > largest:
        raise CheckpointError(f"{path}: {size} bytes, more than any such file has")
    return content


def _parse(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: malformed, {error}") from error


def _same(decoded: Json, value: Json) -> bool:
    """Equality that tells lists from tuples and 1 from 1.0 and True."""
    if type(decoded) is not type(value):
        return False
    if isinstance(decoded, dict):
        return decoded.keys() == value.keys() and all(_same(decoded[k], value[k]) for k in decoded)
    if isinstance(decoded, list):
        return len(decoded) == len(value) and all(map(_same, decoded, value))
    return bool(decoded == value)
