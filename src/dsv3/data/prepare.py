"""`prepare`: from the `data` section to prepared text, made once and found again by its content."""

import hashlib
import json
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path

from dsv3.config.data import DataConfig
from dsv3.data.cache import PreparedCache, cache_root, refuse_foreign
from dsv3.data.documents import Progress, Source, quiet
from dsv3.data.facts import FileFacts
from dsv3.data.installed import collect_installed_text
from dsv3.data.jsonl import collect_jsonl
from dsv3.data.prepared import Prepared, open_prepared
from dsv3.errors import ConfigError, DataError, Problem


def prepare(
    config: DataConfig, *, vocab_size: int, progress: Progress = quiet, only_open: bool = False
) -> Prepared:
    """Open the prepared text of `config`, making it first if its content is new.

    With `only_open` NotPreparedError is raised instead.

    Reported stages: collect, train tokenizer, encode, write; and wait, while another process
    prepares the same text. Raises ConfigError (the tokenizer exceeds `vocab_size`), DataError (text
    missing, malformed, too little, or damaged in the cache), CapacityError (the cache cannot be
    written). After an error the cache holds nothing new.
    """
    if config.tokenizer is None:
        size = config.tokenizer_vocab_size
        _check_fits(f"data.tokenizer_vocab_size={size}", size, vocab_size)
        tokenizer, tokenizer_key = None, f"train {size}"
    else:
        from dsv3.data.tokenizer import TextTokenizer

        tokenizer = TextTokenizer.read(config.tokenizer)
        _check_fits(f"data.tokenizer={config.tokenizer}", tokenizer.vocab_size, vocab_size)
        tokenizer_key = hashlib.sha256(tokenizer.content.encode()).hexdigest()
    root = cache_root(config.cache_dir)
    if config.cache_dir is None:
        refuse_foreign(root)
    facts = FileFacts(root / "facts" / f"{_facts_name(config)}.json")
    source = collect(config, facts, progress)
    key = _key(source, tokenizer_key, config.validation_fraction)

    def make(directory: Path) -> None:
        if only_open:
            rule = f"is not prepared in {root}, as this machine ({platform.node()}) sees it"
            remedy = "dsv3 data prepare, with the same words, prepares it once for all nodes"
            raise NotPreparedError(Problem(f"data.source={config.source}", rule, remedy))
        from dsv3.data.packing import build

        wanted = config.tokenizer_vocab_size if tokenizer is None else tokenizer
        build(directory, source, wanted, config.validation_fraction, progress)

    cached = PreparedCache(root)
    directory = cached.ensure(key, make, waiting=lambda: progress("wait", 0, None))
    facts.save()
    return open_prepared(directory)


class NotPreparedError(DataError):
    """The text would have to be prepared first."""


def collect(config: DataConfig, facts: FileFacts, progress: Progress = quiet) -> Source:
    """Find and check the text of `config` without keeping it; raises DataError."""
    if config.source == "jsonl":
        assert config.path is not None, "a rule asks for it"
        return collect_jsonl(config.path, config.max_bytes, facts, progress)
    assert config.domain_shares is not None, "a rule asks for them"
    shares = {str(domain): share for domain, share in config.domain_shares.items()}
    return collect_installed_text(shares, config.max_bytes, facts, progress)


def _check_fits(setting: str, size: int, vocab_size: int) -> None:
    if size > vocab_size:
        rule = f"{size} tokens do not fit model.vocab_size={vocab_size}"
        remedy = f"set model.vocab_size={size} or more, or take a smaller tokenizer"
        raise ConfigError(Problem(setting, rule, remedy))


def _key(source: Source, tokenizer_key: str, validation_fraction: float) -> str:
    """Name of the prepared text: everything it is made from, and what makes it."""
    parts = {
        "source": source.signature,
        "tokenizer": tokenizer_key,
        "validation_fraction": validation_fraction,
        "tokenizers": version("tokenizers"),
        "code": _code_digest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _facts_name(config: DataConfig) -> str:
    """Facts are kept per source, and hold only for the code that found them."""
    name = f"{config.source} {config.path} {_code_digest()}"
    return f"{config.source}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


@cache
def _code_digest() -> str:
    """Digest of this package's source: no version number that someone forgets to raise.

    Too careful at worst: the fingerprint is of the result, and stays if the result does.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def unseen(_stage: str, _done: int, _total: int | None) -> None:
    """Progress for a process whose launcher has shown the preparation already."""
