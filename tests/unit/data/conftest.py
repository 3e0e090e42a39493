"""A small corpus of jsonl lines, and the `data` section that reads it."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv3.config.data import DataConfig

WORDS = (
    *("the", "of", "router", "expert", "token", "loss", "bias", "gate", "layer", "head,", "norm."),
    *("(key)", "value\n", "rank", "12", "345", "\u00e9", "\u7684"),
)


def corpus(documents: int, *, seed: int = 0) -> list[dict[str, str]]:
    """Documents of 5 to 80 words in two domains."""
    rng = random.Random(seed)
    return [
        {
            "text": " ".join(rng.choices(WORDS, k=rng.randint(5, 80))),
            "domain": rng.choice(("web", "code")),
        }
        for _ in range(documents)
    ]


@pytest.fixture
def records() -> list[dict[str, str]]:
    return corpus(300)


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(records: list[Any], name: str = "text.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write


@pytest.fixture
def data_config(tmp_path: Path) -> Callable[..., DataConfig]:
    def make(path: Path | str | None = None, **changes: Any) -> DataConfig:
        values = {
            "source": "jsonl",
            "path": None if path is None else str(path),
            "tokenizer": None,
            "tokenizer_vocab_size": 300,
            "max_bytes": 10**9,
            "domain_shares": None,
            "validation_fraction": 0.1,
            "cache_dir": str(tmp_path / "cache"),
        }
        return DataConfig(**(values | changes))

    return make


@pytest.fixture
def prepared_text(
    records: list[dict[str, str]],
    write_jsonl: Callable[..., Path],
    data_config: Callable[..., DataConfig],
) -> Any:
    from dsv3.data.prepare import prepare

    return prepare(data_config(write_jsonl(records)), vocab_size=300)
