"""`data`: the text a run trains and is evaluated on."""

from typing import Literal

from dsv3.config.section import Section, field


class DataConfig(Section):
    """Text is split into training and validation by the hash of each document."""

    source: Literal["installed_text", "jsonl"] = field(
        "`installed_text`: what any Python machine has; `jsonl`: files under `path`."
    )
    path: str | None = field("jsonl: a file, a directory or a glob of .jsonl[.gz|.zst] files.")
    tokenizer: str | None = field("A tokenizer.json; null: train byte-level BPE on the text.")
    tokenizer_vocab_size: int = field("Entries of the BPE that is trained.", ge=257)
    max_bytes: int = field("At most so many bytes of text are taken, spread over domains.", gt=0)
    validation_fraction: float = field("Share of documents held out.", gt=0, lt=1)
    cache_dir: str | None = field("Where shards are kept; null: the user's cache directory.")
