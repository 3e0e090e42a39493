"""Files and directories that are on the disk when the call returns, or are not there at all."""

import contextlib
import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from dsv3.errors import CapacityError, Problem

Chunk = bytes | memoryview

REFUSALS = (
    errno.EACCES,
    errno.EDQUOT,
    errno.EIO,
    errno.ELOOP,
    errno.EMFILE,
    errno.ENAMETOOLONG,
    errno.ENFILE,
    errno.ENOSPC,
    errno.EPERM,
    errno.EROFS,
    errno.ESTALE,
)
"""What a file system says that is no fault of ours, wherever it says it."""


def write_synced(path: Path, chunks: Iterable[Chunk]) -> None:
    """Write and fsync a new file, holding no more than a chunk of it; one already there stays.

    Raises OSError; a file whose fsync failed must be thrown away, never retried, because the kernel
    may have dropped the pages and report success the next time.
    """
    with path.open("xb", buffering=0) as file:
        for chunk in chunks:
            view = memoryview(chunk).cast("B")
            while view:
                view = view[file.write(view) :]
        os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes, *, writer: str | None = None) -> None:
    """Replace `path` by temporary file, fsync and rename: a crash leaves the old or the new one.

    A `writer` of whom there is one at a time replaces what it left behind when it was killed.
    Raises OSError; the old file then stands and nothing else is left.
    """
    temporary = path.with_name(f".{path.name}.{writer or uuid.uuid4().hex}")
    try:
        if writer is not None:
            temporary.unlink(missing_ok=True)
        write_synced(temporary, [content])
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def new_directory(final: Path, temporary: Path, *, mode: int = 0o777) -> Iterator[None]:
    """Make `temporary`, to be filled in the `with` block; it is then renamed to `final`.

    Others see all of it or nothing. Raises OSError; `temporary` is gone either way.
    """
    temporary.mkdir(mode)
    try:
        yield
        sync_directory(temporary)
        temporary.rename(final)
        sync_directory(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def probe_writable(directory: Path) -> None:
    """Write a page into an unnamed file of `directory`; nothing is left behind.

    Raises OSError: permission bits alone know nothing of quotas, full disks or read-only mounts.
    """
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())


def refused(error: OSError) -> CapacityError | None:
    """What to raise for an OSError nobody expected if the file system is at fault, else None."""
    if error.errno not in REFUSALS:
        return None
    return storage_error(error.filename or "stdout", error, "make it accessible, with room in it")


def reason(error: OSError | ValueError) -> str:
    """What the file system said, without number and path."""
    return getattr(error, "strerror", None) or str(error)


def storage_error(
    setting: Path | str, error: OSError | ValueError, remedy: str, *, what: str = ""
) -> CapacityError:
    """What to raise when the file system refuses `setting`, a path or a key=value."""
    said = reason(error)
    said = said[:1].lower() + said[1:]
    return CapacityError(Problem(str(setting), f"{what}: {said}" if what else said, remedy))
