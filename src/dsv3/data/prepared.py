"""Prepared text: what its directory holds, and how it is opened."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from dsv3.data.shards import Ids, Shard, TokenStream, TokenType, damaged
from dsv3.files import reason

MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"
BYTES_OF_TOKENS, COUNTS_OF_TOKENS = "bytes_of_tokens.bin", "counts_of_tokens.bin"
TABLE_TYPE = "<i8"
FORMAT = 1


class DomainCounts(BaseModel):
    """Documents, UTF-8 bytes and tokens (with end-of-sentence) of one domain and split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train_documents: int = 0
    train_bytes: int = 0
    train_tokens: int = 0
    validation_documents: int = 0
    validation_bytes: int = 0
    validation_tokens: int = 0


class Manifest(BaseModel):
    """Everything about prepared text but the text; its hash is the fingerprint of the data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    vocab_size: int
    end_of_sentence: int
    dtype: TokenType
    domains: dict[str, DomainCounts]
    train: list[Shard]
    validation: dict[str, list[Shard]]
    files: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Changes if and only if the tokens, their order, their split or the tokenizer do."""
        return hashlib.sha256(self.as_bytes()).hexdigest()

    def as_bytes(self) -> bytes:
        """Canonical JSON: the same for the same content, everywhere."""
        return json.dumps(self.model_dump(), sort_keys=True, indent=1).encode()


@dataclass(frozen=True)
class Prepared:
    """Tokenised, split and packed text, opened for reading.

    unigram_entropy is the cross entropy, in nats per token, of the token frequencies of the
    training text (add-one smoothed) on the validation text: what a model without context reaches.
    """

    directory: Path
    fingerprint: str
    domains: Mapping[str, DomainCounts]
    vocab_size: int
    end_of_sentence: int
    token_bytes: Ids
    train: TokenStream
    validation: Mapping[str, TokenStream]
    unigram_entropy: float
    unigram_bits_per_byte: float
    unigram_log_probabilities: npt.NDArray[np.float64]

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer.json the text was made with."""
        return self.directory / TOKENIZER


def open_prepared(directory: Path) -> Prepared:
    """Open prepared text; raises DataError if a file is missing or not what was written."""
    manifest = _read_manifest(directory)
    for name, sha256 in manifest.files.items():
        if hashlib.sha256(_read(directory / name)).hexdigest() != sha256:
            raise damaged(directory / name, "its content is not what was written")
    counts = np.fromfile(directory / COUNTS_OF_TOKENS, dtype=TABLE_TYPE).reshape(2, -1)
    token_bytes = np.fromfile(directory / BYTES_OF_TOKENS, dtype=TABLE_TYPE)
    log_probabilities = smoothed_log_probabilities(counts[0])
    nats = -float(log_probabilities @ counts[1])
    validation_tokens, validation_bytes = int(counts[1].sum()), int(token_bytes @ counts[1])

    def stream(shards: list[Shard]) -> TokenStream:
        return TokenStream(directory, shards, manifest.dtype, manifest.vocab_size)

    return Prepared(
        directory=directory,
        fingerprint=manifest.fingerprint,
        domains=manifest.domains,
        vocab_size=manifest.vocab_size,
        end_of_sentence=manifest.end_of_sentence,
        token_bytes=token_bytes,
        train=stream(manifest.train),
        validation={name: stream(shards) for name, shards in manifest.validation.items()},
        unigram_entropy=nats / max(validation_tokens, 1),
        unigram_bits_per_byte=nats / math.log(2) / max(validation_bytes, 1),
        unigram_log_probabilities=log_probabilities,
    )


def smoothed_log_probabilities(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """ln((count + 1) / (sum + vocabulary)) [vocabulary]: add-one smoothing."""
    log_counts: npt.NDArray[np.float64] = np.log(counts + 1.0)
    return log_counts - math.log(int(counts.sum()) + len(counts))


def _read_manifest(directory: Path) -> Manifest:
    path = directory / MANIFEST
    content, _, sha256 = _read(path).rpartition(b"\n")
    if hashlib.sha256(content).hexdigest().encode() != sha256:
        raise damaged(path, "its content is not what was written")
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise damaged(path, f"it is of another format: {error}") from error
    if manifest.format != FORMAT:
        raise damaged(path, f"its format is {manifest.format}, this version reads {FORMAT}")
    return manifest


def manifest_file(manifest: Manifest) -> bytes:
    """The manifest and, on a line of its own, its hash."""
    return manifest.as_bytes() + b"\n" + manifest.fingerprint.encode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise damaged(path, f"cannot be read: {reason(error)}") from error
