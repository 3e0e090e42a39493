"""`data`: the text a run trains and is evaluated on."""

from typing import Annotated, Literal

from pydantic import Field

from dsv3.config.section import Section, field

InstalledDomain = Literal["python", "c", "docs", "math"]
Share = Annotated[float, Field(ge=0)]
SMALLEST_VOCABULARY = 261  # of a BPE that is trained: every byte and the special tokens


class DataConfig(Section):
    """Text is split into training and validation by the hash of each document."""

    source: Literal["installed_text", "jsonl"] = field(
        "`installed_text`: what any Python machine has; `jsonl`: files under `path`."
    )
    path: str | None = field(
        "jsonl: a file, a directory or a glob of .jsonl[.gz|.zst] files.", min_length=1
    )
    tokenizer: str | None = field(
        "A byte-level tokenizer.json; null: train byte-level BPE on the text.", min_length=1
    )
    tokenizer_vocab_size: int = field(
        "Entries of the BPE that is trained: 256 bytes, 5 special tokens and merges.", gt=0
    )
    max_bytes: int = field("At most so many bytes of text are taken, spread over domains.", gt=0)
    domain_shares: dict[InstalledDomain, Share] | None = field(
        "installed_text: parts of `max_bytes` per domain, any positive scale; what a domain cannot"
        " fill goes to the others. null for jsonl, whose domains keep their own proportions."
    )
    validation_fraction: float = field("Share of documents held out.", gt=0, lt=1)
    cache_dir: str | None = field(
        "Where shards are kept; null: the user's cache directory.", min_length=1
    )
