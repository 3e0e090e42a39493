"""Lines of a plain, gzip or zstandard file; everything wrong in its bytes is found."""

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

GZIP_MAGIC, ZSTANDARD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
CHUNK_BYTES = 1 << 20
LONGEST_LINE_BYTES = 1 << 28  # one document; also the bound on memory against compressed bombs


class DamagedFileError(Exception):
    """The bytes of a file are not what its format says; the message says what is wrong."""


class HashingFile(io.RawIOBase):
    """A file read once from begin to end, hashed as it is read."""

    def __init__(self, file: io.RawIOBase) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.bytes_read = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read like a raw file does."""
        count = self._file.readinto(buffer) or 0
        self._hash.update(memoryview(buffer)[:count])
        self.bytes_read += count
        return count

    def hexdigest(self) -> str:
        """SHA-256 of what was read."""
        return self._hash.hexdigest()


def magic_of(path: Path) -> bytes:
    """First four bytes of a file; they, not its name, say how it is compressed."""
    with path.open("rb") as file:
        return file.read(4)


def lines(file: BinaryIO, magic: bytes) -> Iterator[bytes]:
    """Lines without their line feed, the last one with or without it in the file.

    Raises DamagedFileError for truncated or damaged compression and for a line without end.
    """
    rest = b""
    for chunk in _chunks(file, magic):
        *complete, rest = (rest + chunk).split(b"\n")
        yield from complete
        if len(rest) > LONGEST_LINE_BYTES:
            raise DamagedFileError(f"a line is longer than {LONGEST_LINE_BYTES} bytes")
    if rest:
        yield rest


def _chunks(file: BinaryIO, magic: bytes) -> Iterator[bytes]:
    try:
        if magic.startswith(GZIP_MAGIC):
            with gzip.GzipFile(fileobj=file, mode="rb") as unzipped:
                while chunk := unzipped.read(CHUNK_BYTES):
                    yield chunk
        elif magic == ZSTANDARD_MAGIC:
            yield from _zstandard_chunks(file)
        else:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except EOFError as error:
        raise DamagedFileError("the compressed file is truncated") from error
    except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise DamagedFileError(f"the compressed file is damaged: {error}") from error


def _zstandard_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Decompress frame by frame; the library's own reader takes a truncated frame for an end."""
    frame, inside = zstandard.ZstdDecompressor().decompressobj(), False
    # A small piece at a time: a decompression object has no bound on what one call returns.
    while compressed := file.read(CHUNK_BYTES >> 6):
        while compressed:
            inside = True
            yield frame.decompress(compressed)
            compressed = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame, inside = zstandard.ZstdDecompressor().decompressobj(), False
    if inside:
        raise EOFError
