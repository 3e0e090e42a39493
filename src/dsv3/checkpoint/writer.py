"""Writing one checkpoint, atomically: temporary directory, hashes, fsync, rename. Free of torch."""

import json
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dsv3.checkpoint.collective import Collective, Json, on_first, together
from dsv3.checkpoint.durable import create_temporary, publish, write_file
from dsv3.checkpoint.manifest import (
    FORMAT_VERSION,
    ROOT_NAME,
    SEAL_NAME,
    STATE_NAME,
    DtypeName,
    FileRecord,
    Identity,
    PartManifest,
    RootManifest,
    TensorRecord,
    part_names,
    require_tiling,
    seal_of,
    to_json,
    validated,
)
from dsv3.files import Chunk, storage_error

ITEM_BYTES: dict[DtypeName, int] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


class Entry(NamedTuple):
    """A fragment ready to be written: its place in the global tensor, and its bytes in chunks."""

    key: str
    record: TensorRecord
    chunks: Iterable[Chunk]


class Header(NamedTuple):
    """What binds the parts of one checkpoint together."""

    identity: Identity
    step: int
    optimizer_step: int
    attempt: int
    layout: dict[str, Json]


def write_checkpoint(
    directory: Path,
    header: Header,
    entries: Sequence[Entry],
    *,
    state: dict[str, Json],
    rank_state: dict[str, Json],
    collective: Collective,
    before_publish: Callable[[], None] = lambda: None,
) -> Path:
    """Write `directory/step-N` (collective); it appears complete or not at all.

    `state` is rank 0's, `rank_state` every rank's own; `before_publish` is called on rank 0 when
    all else is on the disk. Raises on every rank: CapacityError if the storage fails,
    CheckpointError if the fragments do not tile their tensors. Then nothing is left behind and
    older checkpoints are as they were.
    """
    final = directory / f"step-{header.step}"
    temporary: Path | None = None
    try:
        wanted = sum(collective.all_gather(sum(map(_entry_bytes, entries))))

        def create() -> str:
            return str(create_temporary(directory, final.name, wanted=wanted))

        temporary = Path(on_first(collective, create))
        part_of = PartWriter(temporary, header, collective.rank, rank_state)
        parts = together(collective, lambda: part_of.write(entries).model_dump(mode="json"))

        def complete() -> None:
            _write_root(temporary, header, parts, state)
            before_publish()
            publish(temporary, final)

        on_first(collective, complete)
    except OSError as error:
        raise storage_error(
            final,
            error,
            "older checkpoints are as they were; make room and ask for the same run again",
            what="was not saved",
        ) from error
    finally:
        if temporary is not None and collective.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)  # renamed away if all went well
    return final


class PartWriter(NamedTuple):
    """Writes one rank's two files."""

    directory: Path
    header: Header
    rank: int
    rank_state: dict[str, Json]

    def write(self, entries: Sequence[Entry]) -> FileRecord:
        """Write the tensors and their manifest; return the record of the manifest."""
        to_json(self.rank_state)  # before anything large is written
        manifest_name, tensors_name = part_names(self.rank)
        tensors = {entry.key: entry.record for entry in entries}
        assert len(tensors) == len(entries), "two fragments of one tensor on one rank"
        written = write_file(self.directory / tensors_name, safetensors_chunks(entries))
        part = PartManifest(
            format_version=FORMAT_VERSION,
            run_id=self.header.identity.run_id,
            step=self.header.step,
            attempt=self.header.attempt,
            rank=self.rank,
            file=FileRecord.of(written),
            tensors=tensors,
            rank_state=self.rank_state,
        )
        content = to_json(part.model_dump(mode="json"))
        return FileRecord.of(write_file(self.directory / manifest_name, [content]))


def safetensors_chunks(entries: Sequence[Entry]) -> Iterator[Chunk]:
    """Stream fragments as a safetensors file of 1-D tensors, without holding more than a chunk."""
    header, end = {}, 0
    for key, record, _ in entries:
        begin, end = end, end + record.length * ITEM_BYTES[record.dtype]
        header[key] = {
            "dtype": record.dtype,
            "shape": [record.length],
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data
    yield struct.pack("<Q", len(text)) + text
    for entry in entries:
        yield from entry.chunks


def _entry_bytes(entry: Entry) -> int:
    return entry.record.length * ITEM_BYTES[entry.record.dtype]


def _write_root(directory: Path, header: Header, parts: list[Json], state: dict[str, Json]) -> None:
    written = write_file(directory / STATE_NAME, [to_json(state)])
    root = RootManifest(
        format_version=FORMAT_VERSION,
        identity=header.identity,
        step=header.step,
        optimizer_step=header.optimizer_step,
        attempt=header.attempt,
        layout=header.layout,
        state=FileRecord.of(written),
        parts=tuple(FileRecord(**part) for part in parts),
    )
    manifests = (directory / part_names(rank)[0] for rank in range(len(parts)))
    require_tiling(
        directory,
        (validated(PartManifest, path.read_bytes(), path) for path in manifests),
    )
    content = to_json(root.model_dump(mode="json"))
    write_file(directory / ROOT_NAME, [content])
    write_file(directory / SEAL_NAME, [seal_of(content)])
