"""`data=jsonl`: the user's own files, checked to the last line before anything is made of them."""

import glob
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dsv3.data.documents import Document, Progress, expanded
from dsv3.data.facts import FileFacts, now_ns
from dsv3.data.records import LINE, SHOWN_PROBLEMS, JsonlFile
from dsv3.errors import DataError, Problem
from dsv3.files import reason

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
MOST_DOMAINS = 256  # each is counted, held out and evaluated apart


@dataclass(frozen=True)
class JsonlText:
    """Checked files; of each domain the documents from the beginning, up to its quota in bytes."""

    files: tuple[Path, ...]
    digests: tuple[str, ...]
    quotas: dict[str, int]
    total_bytes: int

    @property
    def signature(self) -> str:
        """Digest of the files' content, in the order they are read, and of the quotas."""
        content = json.dumps([self.digests, sorted(self.quotas.items())])
        return hashlib.sha256(content.encode()).hexdigest()

    def documents(self) -> Iterator[Document]:
        """Documents in the order of the files; raises DataError if a file has changed."""
        left = dict(self.quotas)
        for path, digest in zip(self.files, self.digests, strict=True):
            if not any(left.values()):
                return
            reader = JsonlFile(path)
            try:
                for document in reader.documents():
                    size = len(document.text.encode())
                    if size <= left.get(document.domain, 0):
                        left[document.domain] -= size
                        yield document
                    else:
                        left[document.domain] = 0  # full: later, smaller ones do not slip in
            except OSError as error:
                rule = f"cannot be read any more: {reason(error)}"
                raise DataError(Problem(str(path), rule)) from error
            if reader.problems or reader.digest != digest:
                raise DataError(Problem(str(path), "changed while it was read", "try again"))


def collect_jsonl(path: str, max_bytes: int, facts: FileFacts, progress: Progress) -> JsonlText:
    """Find and check the files of `data.path`.

    Raises DataError naming file and line of the first problems, all at once.
    """
    files = _found(path)
    checks = [_Check(file) for file in files]
    total, done = sum(check.stat.st_size for check in checks), 0
    problems: list[Problem] = []
    for check in checks:
        check.run(facts, partial(_report, progress, done, total))
        done += check.stat.st_size
        problems += check.problems
        if len(problems) >= SHOWN_PROBLEMS:
            break
    if problems:
        raise DataError(problems[:SHOWN_PROBLEMS])
    sizes: Counter[str] = Counter()
    for check in checks:
        sizes.update(check.sizes)
    if len(sizes) > MOST_DOMAINS:
        rule = f"{len(sizes)} different domains, at most {MOST_DOMAINS} are told apart"
        raise DataError(Problem(f"data.path={path}", rule, "use a coarser `domain`"))
    quotas = _quotas(sizes, max_bytes)
    digests = tuple(check.digest for check in checks)
    return JsonlText(tuple(files), digests, quotas, sum(quotas.values()))


def _report(progress: Progress, before: int, total: int, read: int) -> None:
    progress("collect", before + read, total)


def _found(path: str) -> list[Path]:
    try:
        return find_files(path)
    except OSError as error:
        rule = f"cannot be read: {reason(error)}"
        raise DataError(Problem(f"data.path={path}", rule)) from error


def find_files(path: str) -> list[Path]:
    """The files that `data.path` means, sorted; raises DataError if there are none."""
    setting, given = f"data.path={path}", expanded(path)
    if given.is_dir():
        if not os.access(given, os.R_OK | os.X_OK):
            raise DataError(Problem(setting, "the directory cannot be read"))
        inside = (file for file in given.rglob("*") if file.name.endswith(SUFFIXES))
        found = sorted(file for file in inside if file.is_file())
        if not found:
            raise DataError(Problem(setting, f"the directory holds no {', '.join(SUFFIXES)} file"))
        return found
    if given.exists():
        found = [given]
    else:
        matches = glob.glob(str(given), recursive=True)  # noqa: PTH207 - absolute patterns
        found = sorted(Path(match) for match in matches if not Path(match).is_dir())
    if not found:
        raise DataError(Problem(setting, "no such file or directory", "give .jsonl files"))
    odd = [file for file in found if not file.is_file()]
    if odd:
        raise DataError(Problem(setting, f"{odd[0]} is not a regular file"))
    return found


def _quotas(sizes: dict[str, int], max_bytes: int) -> dict[str, int]:
    """Bytes taken of each domain: all, or the same fraction of each."""
    total = sum(sizes.values())
    if total <= max_bytes:
        return dict(sizes)
    return {domain: size * max_bytes // total for domain, size in sizes.items()}


class _Check:
    """What is known of one file: its digest and bytes per domain, or what is wrong with it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.stat = file.stat()
        self.digest = ""
        self.sizes: dict[str, int] = {}
        self.problems: list[Problem] = []

    def run(self, facts: FileFacts, progress: Callable[[int], None]) -> None:
        """Read the file, unless it is the same as the last time."""
        path = str(self.file.absolute())
        found = facts.get(path, "jsonl", self.stat)
        if found is None:
            read_at_ns = now_ns()
            self._read(progress)
            if self.problems:
                return
            found = {"digest": self.digest, "bytes": self.sizes}
            facts.put(path, "jsonl", self.stat, found, read_at_ns=read_at_ns)
        self.digest, self.sizes = found["digest"], found["bytes"]

    def _read(self, progress: Callable[[int], None]) -> None:
        reader = JsonlFile(self.file)
        sizes: Counter[str] = Counter()
        try:
            for document in reader.documents(progress):
                sizes[document.domain] += len(document.text.encode())
        except OSError as error:
            reader.problems.append(Problem(str(self.file), f"cannot be read: {reason(error)}"))
        if not sizes and not reader.problems:
            reader.problems.append(
                Problem(str(self.file), "there is no text in it", f"expected {LINE}")
            )
        self.digest, self.sizes, self.problems = reader.digest, dict(sizes), reader.problems
