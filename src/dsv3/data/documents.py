"""What every source of text gives: documents tagged by domain, and a signature of them all."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Progress = Callable[[str, int, int | None], None]
"""Called with the stage, how much is done and how much there is (None: unknown)."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text and the domain its tokens are counted under."""

    domain: str
    text: str


class Source(Protocol):
    """Text that has been looked through once and can be read again and again."""

    @property
    def signature(self) -> str:
        """Hex digest that changes whenever a document does."""

    @property
    def total_bytes(self) -> int:
        """UTF-8 bytes of all documents; math may end a little below."""

    def documents(self) -> Iterator[Document]:
        """Every document, always in the same order.

        Raises DataError if a file is not what it was when the source was looked through.
        """


@dataclass(frozen=True, slots=True)
class DocumentHash:
    """Two independent 64-bit draws from the text alone; other documents play no part."""

    split: int
    order: int

    @classmethod
    def of(cls, encoded: bytes) -> "DocumentHash":
        """Hash the UTF-8 bytes of a document."""
        digest = hashlib.blake2b(encoded, digest_size=16, person=b"dsv3 document").digest()
        return cls(int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big"))

    def is_validation(self, fraction: float) -> bool:
        """Whether the document is among the held-out `fraction`."""
        return self.split < int(fraction * 2**64)


def expanded(path: str) -> Path:
    """The path with ~ replaced; as it is where nobody has that name."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - the other one raises


def quiet(stage: str, done: int, total: int | None) -> None:
    """Report no progress."""
