"""Files of a checkpoint, hashed on their way, and directories that appear and go in one piece."""

import errno
import hashlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from dsv3.files import Chunk, sync_directory, write_synced

READ_BYTES = 1 << 22
SPARE_BYTES = 1 << 20
"""What a checkpoint leaves free: its own manifests and the lines of the run."""

STEP_NAME = re.compile(r"step-(0|[1-9][0-9]{0,17})")
# A checkpoint on its way in, one moved aside for its successor, one on its way out.
TEMPORARY_NAME = re.compile(r"\.(step-[0-9]+)\.[0-9a-f]{32}\.(writing|replaced|removing)")


class Written(NamedTuple):
    """Size and SHA-256 of a file, taken from the bytes as they were written."""

    bytes: int
    sha256: str


def write_file(path: Path, chunks: Iterable[Chunk]) -> Written:
    """Write and fsync a new file, hashing on the way; raises OSError."""
    digest, size = hashlib.sha256(), 0

    def hashed() -> Iterator[Chunk]:
        nonlocal size
        for chunk in chunks:
            digest.update(chunk)
            size += memoryview(chunk).nbytes
            yield chunk

    write_synced(path, hashed())
    return Written(size, digest.hexdigest())


def read_chunks(path: Path) -> Iterator[bytes]:
    """Yield the content of a regular file; a link, pipe or directory raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path.name} is not a regular file")
        while chunk := file.read(READ_BYTES):
            yield chunk


def file_hash(path: Path) -> Written:
    """Size and SHA-256 of a file as it is now."""
    digest, size = hashlib.sha256(), 0
    for chunk in read_chunks(path):
        digest.update(chunk)
        size += len(chunk)
    return Written(size, digest.hexdigest())


def file_size(path: Path) -> int:
    """Size of a file itself, not of what it may link to; raises OSError if it is not there."""
    return path.lstat().st_size


def create_temporary(directory: Path, name: str, *, wanted: int = 0) -> Path:
    """Create the directory that becomes `directory/name`, where `wanted` bytes have room.

    Raises OSError. That there is no room is known before the first byte: a save that fills the disk
    would take the run's logs with it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    system = os.statvfs(directory)
    if system.f_bavail * system.f_frsize < wanted + SPARE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))
    temporary = _aside(directory / name, "writing")
    temporary.mkdir()
    return temporary


def publish(temporary: Path, final: Path) -> None:
    """Give a complete temporary directory its name, in place of an older one of that name.

    If it fails everything is named as before. A crash between the two renames leaves the older one
    moved aside; `clean` puts it back.
    """
    sync_directory(temporary)
    replaced = _aside(final, "replaced") if final.exists() else None
    if replaced is not None:
        final.rename(replaced)
    try:
        temporary.rename(final)
        sync_directory(final.parent)
    except OSError:
        if final.exists():
            final.rename(temporary)
        if replaced is not None:
            replaced.rename(final)
        raise
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a checkpoint: out of sight at once, then file by file."""
    removing = _aside(path, "removing")
    path.rename(removing)
    sync_directory(path.parent)
    shutil.rmtree(removing, ignore_errors=True)


def clean(directory: Path) -> list[str]:
    """Remove what crashed writers left; undo an interrupted replacement. Returns the names.

    Only the holder of the run's lock may call this: it would remove a live writer's directory.
    """
    leftovers = []
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        match = TEMPORARY_NAME.fullmatch(path.name)
        if match is None:
            continue
        leftovers.append(path.name)
        final = directory / match[1]
        if match[2] == "replaced" and not final.exists():
            path.rename(final)
        else:
            shutil.rmtree(path, ignore_errors=True)
    return leftovers


def _aside(path: Path, fate: str) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.{fate}")
