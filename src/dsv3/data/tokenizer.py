"""Byte-level BPE: trained once on the text, or the user's tokenizer.json."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from dsv3.data.documents import expanded
from dsv3.errors import DataError, Problem
from dsv3.files import reason

BEGIN, END = "<|begin_of_sentence|>", "<|end_of_sentence|>"
# The FIM tokens are reserved for the report's prefix-suffix-middle documents (section 4.1).
SPECIAL_TOKENS = (BEGIN, END, "<|fim_begin|>", "<|fim_hole|>", "<|fim_end|>")
# What other families call the end of a document; DeepSeek-V3's own is written with U+FF5C, U+2581.
KNOWN_ENDS = (
    END,
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
)
# Words with one leading mark or space, up to three digits, and - as in the report, section 4.1 -
# punctuation together with the line breaks that follow it.
WORDS = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# In the byte-level alphabet; those that UTF-8 never has stand there for themselves.
BYTES_OF_TEXT = frozenset(pre_tokenizers.ByteLevel.alphabet()) - set(
    bytes([0xC0, 0xC1, *range(0xF5, 0x100)]).decode("latin-1")
)
BATCH_BYTES = 4 << 20  # text in one parallel call; its encodings take about sixteen times as much


class TextTokenizer:
    """A byte-level tokenizer that reads special tokens in a text as ordinary text."""

    def __init__(self, content: str, *, name: str) -> None:
        """Take the content of a tokenizer.json; raises DataError if it is none, or unusable."""
        try:
            self._tokenizer = Tokenizer.from_str(content)
        except Exception as error:
            raise DataError(Problem(name, f"not a tokenizer.json: {error}")) from error
        # As the library understood it: what a file may leave out is there, ids are those in use.
        self._description = json.loads(self._tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.content = content
        self._vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self._refuse_lossy(name)
        self.vocab_size = 1 + max(self._vocabulary.values())
        self.end_of_sentence = self._end(name)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "TextTokenizer":
        """Train on `texts`, to at most `vocab_size` entries: specials, 256 bytes, merges."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer.to_str(), name="the trained tokenizer")

    @classmethod
    def read(cls, path: str) -> "TextTokenizer":
        """Read a tokenizer.json; raises DataError if it is missing or unusable."""
        setting = f"data.tokenizer={path}"
        try:
            content = expanded(path).read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(Problem(setting, f"cannot be read: {reason(error)}")) from error
        except UnicodeDecodeError as error:
            rule = f"not a tokenizer.json: byte {error.start} is not UTF-8"
            raise DataError(Problem(setting, rule)) from error
        return cls(content, name=setting)

    def encode(self, texts: list[str]) -> list[npt.NDArray[np.uint32]]:
        """Token ids of each text, without any special token; in parallel over the texts."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens, special ones included; cut characters become U+FFFD."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def token_bytes(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes [vocabulary] that each token stands for; 0 for the special ones."""
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        for token, index in self._vocabulary.items():
            sizes[index] = len(token)  # the byte-level alphabet: one character a byte
        for added in self._description["added_tokens"]:
            sizes[added["id"]] = 0 if added["special"] else len(added["content"].encode())
        return sizes

    def _refuse_lossy(self, name: str) -> None:
        """Raise DataError unless every text can be encoded and the bytes of a token are known."""
        decoders_ = _parts(self._description["decoder"])
        if not any(part.get("type") == "ByteLevel" for part in decoders_):
            rule = "not byte-level: bytes per token are unknown"
            raise DataError(Problem(name, rule, "use a byte-level BPE"))
        missing = BYTES_OF_TEXT - self._vocabulary.keys()
        if missing:
            rule = f"it has no token for {len(missing)} of the bytes of UTF-8: text would be lost"
            remedy = "train it with all of pre_tokenizers.ByteLevel.alphabet()"
            raise DataError(Problem(name, rule, remedy))

    def _end(self, name: str) -> int:
        for token in KNOWN_ENDS:
            if token in self._vocabulary:
                return int(self._vocabulary[token])
        rule = f"it has none of the end-of-document tokens {', '.join(KNOWN_ENDS)}"
        raise DataError(Problem(name, rule, "add one to its added_tokens"))


def batches(texts: Iterable[tuple[str, int]]) -> Iterator[list[str]]:
    """Group (text, bytes) into lists of at least BATCH_BYTES, in order."""
    batch: list[str] = []
    size = 0
    for text, text_bytes in texts:
        batch.append(text)
        size += text_bytes
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _parts(component: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A component of a tokenizer.json, or the members of a sequence of them."""
    if component is None:
        return []
    if component.get("type") == "Sequence":
        return [part for part in component.get("decoders", []) if isinstance(part, dict)]
    return [component]
