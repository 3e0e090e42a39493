"""`data=installed_text`: source code, headers and documentation found here, and mathematics."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dsv3.data.documents import Document, Progress
from dsv3.data.facts import FileFacts, now_ns
from dsv3.data.installed_files import LARGEST_BYTES, Candidate, candidates, read, texts
from dsv3.data.mathematics import worksheets
from dsv3.errors import DataError, Problem

# The scarcest first: what a domain cannot fill is shared by those after it.
FILLING_ORDER = ("docs", "c", "python", "math")
ENOUGH = 0.99  # of a domain's share; the last percent would be searched for small files


@dataclass(frozen=True)
class InstalledText:
    """A choice of files, by content, and so many bytes of mathematics."""

    chosen: tuple[tuple[Candidate, str], ...]
    file_bytes: int
    math_bytes: int

    @property
    def signature(self) -> str:
        """Digest of every chosen file's texts and of the amount of mathematics."""
        lines = [f"{candidate.domain} {digest}" for candidate, digest in self.chosen]
        return hashlib.sha256("\n".join([*lines, f"math {self.math_bytes}"]).encode()).hexdigest()

    @property
    def total_bytes(self) -> int:
        """UTF-8 bytes of text; mathematics may end one work sheet earlier."""
        return self.file_bytes + self.math_bytes

    def documents(self) -> Iterator[Document]:
        """Every document; raises DataError if a file changed since it was chosen."""
        for candidate, digest in self.chosen:
            found = texts(candidate.kind, read(candidate.path) or b"")
            if _digest(found) != digest:
                raise DataError(Problem(candidate.path, "changed while it was read", "try again"))
            for text in found:
                yield Document(candidate.domain, text)
        yield from worksheets(self.math_bytes)


def collect_installed_text(
    shares: Mapping[str, float], max_bytes: int, facts: FileFacts, progress: Progress
) -> InstalledText:
    """Choose files up to `max_bytes`, spread over domains by `shares`; see FILLING_ORDER."""
    by_domain: dict[str, list[Candidate]] = {domain: [] for domain in FILLING_ORDER}
    for candidate in candidates():
        by_domain[candidate.domain].append(candidate)
    chooser = _Chooser(facts, progress, max_bytes)
    left = {domain: shares.get(domain, 0.0) for domain in FILLING_ORDER}
    for domain in FILLING_ORDER[:-1]:
        part = left[domain] / (sum(left.values()) or 1.0)
        chooser.choose(by_domain[domain], int((max_bytes - chooser.total) * part))
        left[domain] = 0.0
    math_bytes = max_bytes - chooser.total if left["math"] > 0 else 0
    return InstalledText(tuple(chooser.chosen), chooser.total, math_bytes)


class _Chooser:
    """Takes candidates in order, each text once, while they fit."""

    def __init__(self, facts: FileFacts, progress: Progress, max_bytes: int) -> None:
        self.chosen: list[tuple[Candidate, str]] = []
        self.total = 0
        self._seen: set[str] = set()
        self._facts = facts
        self._progress = progress
        self._max_bytes = max_bytes

    def choose(self, files: list[Candidate], quota: int) -> None:
        taken = 0
        for candidate in files:
            if taken >= ENOUGH * quota:
                return
            digest, size = self._look_into(candidate, room=quota - taken)
            if digest is None or digest in self._seen or size > quota - taken:
                continue
            self._seen.add(digest)
            self.chosen.append((candidate, digest))
            taken += size
            self.total += size

    def _look_into(self, candidate: Candidate, room: int) -> tuple[str | None, int]:
        """Digest and size of a file's texts; (None, 0) if there are none that fit."""
        try:
            stat = os.stat(candidate.path)  # noqa: PTH116 - thousands of files
        except OSError:
            return None, 0
        whole_file = candidate.kind in ("python", "c", "docs")
        if stat.st_size > LARGEST_BYTES or (whole_file and stat.st_size > room):
            return None, 0
        known = self._facts.get(candidate.path, candidate.kind, stat)
        if known is None:
            read_at_ns = now_ns()
            found = texts(candidate.kind, read(candidate.path) or b"")
            known = {"digest": _digest(found), "bytes": sum(len(text.encode()) for text in found)}
            self._facts.put(candidate.path, candidate.kind, stat, known, read_at_ns=read_at_ns)
            self._progress("collect", self.total, self._max_bytes)
        return known["digest"], known["bytes"]


def _digest(found: list[str]) -> str | None:
    if not found:
        return None
    digest = hashlib.blake2b(digest_size=16)
    for text in found:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()
