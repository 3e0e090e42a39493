"""Documents of one .jsonl file; what is wrong is gathered with its line, not raised."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from dsv3.data.documents import Document
from dsv3.data.lines import CHUNK_BYTES, DamagedFileError, HashingFile, lines, magic_of
from dsv3.errors import Problem

DEFAULT_DOMAIN = "text"
SHOWN_PROBLEMS = 10
LINE = 'one JSON object a line with a "text" and, optionally, a "domain"'


class BadLineError(Exception):
    """A line that is no document: the rule it breaks, and a way out; `binary`: nor are others."""

    def __init__(self, rule: str, remedy: str = "", *, binary: bool = False) -> None:
        super().__init__(rule)
        self.rule, self.remedy, self.binary = rule, remedy, binary


class JsonlFile:
    """One file, read from begin to end; `digest` and `problems` are complete after that."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[Problem] = []
        self.digest = ""

    def documents(self, progress: Callable[[int], None] | None = None) -> Iterator[Document]:
        """Stop at the end, in a binary file, or after the problems that are shown; OSError."""
        number = 0
        with self.path.open("rb", buffering=0) as opened:
            file = HashingFile(opened)
            buffered = io.BufferedReader(file, CHUNK_BYTES)
            try:
                for number, line in enumerate(lines(buffered, magic_of(self.path)), start=1):
                    try:
                        document = parse(line, first=number == 1)
                    except BadLineError as bad:
                        self._add(number, bad.rule, bad.remedy)
                        if bad.binary or len(self.problems) >= SHOWN_PROBLEMS:
                            return
                        continue
                    if document is not None:
                        yield document
                    if progress is not None and number % 1024 == 0:
                        progress(file.bytes_read)
            except DamagedFileError as error:
                self._add(number + 1, str(error), "")
            self.digest = file.hexdigest()

    def _add(self, number: int, rule: str, remedy: str) -> None:
        self.problems.append(Problem(f"{self.path}:{number}", rule, remedy))


def parse(line: bytes, *, first: bool) -> Document | None:
    """The document of a line, None if it is blank; raises BadLineError."""
    try:
        text = line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        wrong = f"byte 0x{line[error.start]:02x} at position {error.start} is not UTF-8"
        raise _unreadable(wrong, line) from error
    if not text.strip():
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(f"not JSON: {error}", line) from error
    if not isinstance(record, dict):
        raise BadLineError(f"a JSON {type(record).__name__}", f"expected {LINE}")
    if "text" not in record:
        keys = ", ".join(map(repr, list(record)[:5])) or "no keys"
        raise BadLineError(f'no "text", only {keys}', f"expected {LINE}")
    domain = record.get("domain", DEFAULT_DOMAIN)
    return Document(_string("domain", domain), _string("text", record["text"]))


def _unreadable(rule: str, line: bytes) -> BadLineError:
    binary = b"\0" in line
    hint = "is this a binary file, or UTF-16? " if binary else ""
    return BadLineError(rule, f"{hint}expected {LINE}", binary=binary)


def _string(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise BadLineError(f'"{key}" is a {type(value).__name__}, not a string')
    if not value.strip():
        raise BadLineError(f'"{key}" is empty')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadLineError(f'"{key}" holds half of a surrogate pair') from error
    return value
