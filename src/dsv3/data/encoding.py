"""Documents encoded in the order of the source, and an index to find each of them again."""

from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dsv3.data.documents import Document, DocumentHash, Progress
from dsv3.data.shards import TokenType, token_type
from dsv3.data.tokenizer import TextTokenizer, batches
from dsv3.errors import DataError, Problem

Documents = npt.NDArray[np.intp]
"""Numbers of documents."""


class EncodedText:
    """Token ids of every document in one file, and of each document its split, order and size."""

    def __init__(self, path: Path, tokenizer: TextTokenizer, validation_fraction: float) -> None:
        self.dtype: TokenType = token_type(tokenizer.vocab_size)
        self.domain_names: list[str] = []
        self.total_tokens = 0
        self._path, self._tokenizer, self._fraction = path, tokenizer, validation_fraction
        self._held_out, self._domains = array("B"), array("H")
        self._order, self._bytes, self._tokens = array("Q"), array("q"), array("q")

    def append(self, documents: Iterator[Document], total_bytes: int, progress: Progress) -> None:
        """Encode every document, batch by batch; end-of-sentence follows each."""
        end = np.array([self._tokenizer.end_of_sentence], dtype=self.dtype).tobytes()
        done = 0
        with self._path.open("wb") as file:
            for batch in batches(self._noted(documents)):
                for ids in self._tokenizer.encode(batch):
                    file.write(ids.astype(self.dtype).tobytes() + end)
                    done += self._bytes[len(self._tokens)]
                    self._tokens.append(len(ids) + 1)
                progress("encode", min(done, total_bytes), total_bytes)
        self.total_tokens = sum(self._tokens)

    def check_split(self) -> None:
        """Raise DataError if there is nothing to train on, or nothing to validate on."""
        train, held_out = (self.chosen(held_out=side).size for side in (False, True))
        if not (train and held_out):
            rule = f"documents for training: {train}, held out: {held_out}"
            remedy = (
                "give more documents that differ, or change data.validation_fraction or max_bytes"
            )
            raise DataError(Problem("data", f"too little text: {rule}", remedy))

    def chosen(self, *, held_out: bool, domain: str | None = None) -> Documents:
        """Numbers of the documents of a split (and domain), shuffled by their hashes."""
        chosen = np.frombuffer(self._held_out, dtype=np.uint8) == held_out
        if domain is not None:
            number = self.domain_names.index(domain)
            chosen &= np.frombuffer(self._domains, dtype=np.uint16) == number
        found = np.flatnonzero(chosen)
        order = np.frombuffer(self._order, dtype=np.uint64)[found]
        return found[np.argsort(order, kind="stable")]

    def tokens_of(self, documents: Documents) -> Iterator[npt.NDArray[np.unsignedinteger]]:
        """Token ids of the documents, in the order they are asked for."""
        encoded = np.memmap(self._path, dtype=self.dtype, mode="r")
        sizes = np.frombuffer(self._tokens, dtype=np.int64)
        begins = np.cumsum(sizes) - sizes
        for number in documents:
            yield encoded[begins[number] : begins[number] + sizes[number]]

    def sums(self, documents: Documents) -> tuple[int, int, int]:
        """Number, bytes and tokens of the documents."""
        sizes = np.frombuffer(self._bytes, dtype=np.int64)[documents]
        tokens = np.frombuffer(self._tokens, dtype=np.int64)[documents]
        return len(documents), int(sizes.sum()), int(tokens.sum())

    def _noted(self, documents: Iterator[Document]) -> Iterator[tuple[str, int]]:
        numbers: dict[str, int] = {}
        for document in documents:
            content = document.text.encode()
            drawn = DocumentHash.of(content)
            if document.domain not in numbers:
                numbers[document.domain] = len(numbers)
                self.domain_names.append(document.domain)
            self._held_out.append(drawn.is_validation(self._fraction))
            self._order.append(drawn.order)
            self._bytes.append(len(content))
            self._domains.append(numbers[document.domain])
            yield document.text, len(content)
