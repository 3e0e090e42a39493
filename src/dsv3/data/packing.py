"""From documents to token streams: hashed into a split, encoded, shuffled, written as shards.

Documents follow each other without a boundary in the attention mask, as in the report (section
4.1); each ends with end-of-sentence. Their order is that of a hash of each, so domains mix and no
document's place depends on how the source is ordered.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dsv3.data.documents import Document, DocumentHash, Progress, Source
from dsv3.data.encoding import Documents, EncodedText
from dsv3.data.prepared import (
    BYTES_OF_TOKENS,
    COUNTS_OF_TOKENS,
    FORMAT,
    MANIFEST,
    TABLE_TYPE,
    TOKENIZER,
    DomainCounts,
    Manifest,
    manifest_file,
)
from dsv3.data.shards import Shard, ShardWriter
from dsv3.data.tokenizer import TextTokenizer
from dsv3.files import write_synced

HELD_BYTES = 128 << 20  # a source up to this size is read once and kept while it is packed
SAMPLE_BYTES = 16 << 20  # training text the tokenizer is trained on
ENCODED = "encoded.tmp"


def build(
    directory: Path,
    source: Source,
    tokenizer: TextTokenizer | int,
    validation_fraction: float,
    progress: Progress,
) -> None:
    """Write prepared text into `directory`; an int asks for a new tokenizer of that size.

    Raises DataError if either split would be empty, or a file has changed since it was checked.
    """
    documents = _repeatable(source)
    if isinstance(tokenizer, int):
        sample = _sample(documents(), source.total_bytes, validation_fraction, progress)
        tokenizer = TextTokenizer.train(sample, tokenizer)
    encoded = EncodedText(directory / ENCODED, tokenizer, validation_fraction)
    encoded.append(documents(), source.total_bytes, progress)
    encoded.check_split()
    _Writer(directory, encoded, tokenizer, progress).write()
    (directory / ENCODED).unlink()


def _repeatable(source: Source) -> Callable[[], Iterator[Document]]:
    if source.total_bytes > HELD_BYTES:
        return source.documents
    return list(source.documents()).__iter__


def _sample(
    documents: Iterator[Document], total_bytes: int, fraction: float, progress: Progress
) -> Iterator[str]:
    """Training documents drawn by their hash, about SAMPLE_BYTES of them."""
    below = 2**64 * SAMPLE_BYTES // max(total_bytes, SAMPLE_BYTES)
    done, total = 0, min(total_bytes, SAMPLE_BYTES)
    for document in documents:
        content = document.text.encode()
        drawn = DocumentHash.of(content)
        if drawn.order < below and not drawn.is_validation(fraction):
            done += len(content)
            progress("train tokenizer", min(done, total), total)
            yield document.text


class _Writer:
    """Writes shards, tokenizer, tables and, last, the manifest that binds them."""

    def __init__(
        self, directory: Path, encoded: EncodedText, tokenizer: TextTokenizer, progress: Progress
    ) -> None:
        self._directory, self._encoded, self._tokenizer = directory, encoded, tokenizer
        self._progress = progress
        self._counts = np.zeros((2, tokenizer.vocab_size), dtype=TABLE_TYPE)
        self._done = 0

    def write(self) -> None:
        names = sorted(self._encoded.domain_names)
        train = self._stream("train", self._encoded.chosen(held_out=False), row=0)
        validation = {}
        for number, name in enumerate(names):
            held_out = self._encoded.chosen(held_out=True, domain=name)
            if held_out.size:  # the user's name of a domain is no file name
                validation[name] = self._stream(f"validation-{number:03d}", held_out, row=1)
        manifest = Manifest(
            format=FORMAT,
            vocab_size=self._tokenizer.vocab_size,
            end_of_sentence=self._tokenizer.end_of_sentence,
            dtype=self._encoded.dtype,
            domains={name: self._domain(name) for name in names},
            train=train,
            validation=validation,
            files=self._tables(),
        )
        write_synced(self._directory / MANIFEST, [manifest_file(manifest)])

    def _stream(self, name: str, documents: Documents, row: int) -> list[Shard]:
        with ShardWriter(self._directory, name, self._encoded.dtype) as writer:
            for ids in self._encoded.tokens_of(documents):
                writer.append(ids)
                self._counts[row] += np.bincount(ids, minlength=self._tokenizer.vocab_size)
                self._done += len(ids)
                self._progress("write", self._done, self._encoded.total_tokens)
        return writer.shards

    def _tables(self) -> dict[str, str]:
        files = {
            TOKENIZER: self._tokenizer.content.encode(),
            BYTES_OF_TOKENS: self._tokenizer.token_bytes().astype(TABLE_TYPE).tobytes(),
            COUNTS_OF_TOKENS: self._counts.tobytes(),
        }
        for name, content in files.items():
            write_synced(self._directory / name, [content])
        return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}

    def _domain(self, name: str) -> DomainCounts:
        train = self._encoded.sums(self._encoded.chosen(held_out=False, domain=name))
        held_out = self._encoded.sums(self._encoded.chosen(held_out=True, domain=name))
        return DomainCounts(
            train_documents=train[0],
            train_bytes=train[1],
            train_tokens=train[2],
            validation_documents=held_out[0],
            validation_bytes=held_out[1],
            validation_tokens=held_out[2],
        )
