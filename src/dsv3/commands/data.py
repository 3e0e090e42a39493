"""`dsv3 data prepare` and `dsv3 data inspect`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv3.commands.console import printable, write, write_json, write_table
from dsv3.commands.progress import preparation_progress
from dsv3.config.compose import compose

if TYPE_CHECKING:
    from dsv3.config.root import RunConfig
    from dsv3.data.prepared import Prepared

SHOWN_TRAINING_SAMPLES = 2
SHOWN_CHARACTERS = 400


def prepare(overrides: Sequence[str], *, config_dir: Path | None, as_json: bool) -> int:
    """Prepare the text of a configuration and print what there is; returns the exit code."""
    config = compose(overrides, config_dir=config_dir).config
    prepared = _prepared(config)
    _show(prepared, as_json=as_json, samples=None)
    return 0


def inspect(overrides: Sequence[str], *, config_dir: Path | None, as_json: bool) -> int:
    """The same, and some samples as a model would see them; returns the exit code."""
    config = compose(overrides, config_dir=config_dir).config
    prepared = _prepared(config)
    _show(prepared, as_json=as_json, samples=_samples(prepared, config))
    return 0


def _prepared(config: "RunConfig") -> "Prepared":
    from dsv3.data.prepare import prepare as prepare_text

    with preparation_progress() as progress:
        return prepare_text(config.data, vocab_size=config.model.vocab_size, progress=progress)


def _samples(prepared: "Prepared", config: "RunConfig") -> list[dict[str, Any]]:
    """The first training samples of the run, and a held-out one of each domain."""
    from dsv3.data.samples import TrainingSamples, validation_samples
    from dsv3.data.tokenizer import TextTokenizer

    tokenizer = TextTokenizer.read(str(prepared.tokenizer_path))
    length = config.schedule.sequence_length
    training = TrainingSamples(prepared, length, config.seed)
    shown = [
        {"split": "train", "sample": n, "text": tokenizer.decode(training[n])}
        for n in range(SHOWN_TRAINING_SAMPLES)
    ]
    for sample in validation_samples(prepared, length, len(prepared.validation)):
        text = tokenizer.decode(sample.ids)
        shown.append({"split": "validation", "domain": sample.domain, "text": text})
    return shown


def _show(prepared: "Prepared", *, as_json: bool, samples: list[dict[str, Any]] | None) -> None:
    if as_json:
        write_json(_report(prepared) | ({} if samples is None else {"samples": samples}))
        return
    _write_domains(prepared)
    write(f"directory        {prepared.directory}")
    write(f"fingerprint      {prepared.fingerprint}")
    write(f"vocabulary       {prepared.vocab_size} tokens")
    write(
        f"unigram entropy  {prepared.unigram_entropy:.4f} nats per token,"
        f" {prepared.unigram_bits_per_byte:.4f} bits per byte (held-out text)"
    )
    for sample in samples or ():
        name = sample["domain"] if "domain" in sample else f"sample {sample['sample']}"
        write(f"\n--- {sample['split']}, {printable(name)}")
        write(printable(sample["text"][:SHOWN_CHARACTERS], "\n\t"))


def _report(prepared: "Prepared") -> dict[str, Any]:
    return {
        "directory": str(prepared.directory),
        "fingerprint": prepared.fingerprint,
        "tokenizer": str(prepared.tokenizer_path),
        "vocab_size": prepared.vocab_size,
        "train_tokens": len(prepared.train),
        "validation_tokens": sum(map(len, prepared.validation.values())),
        "unigram_entropy": prepared.unigram_entropy,
        "unigram_bits_per_byte": prepared.unigram_bits_per_byte,
        "domains": {name: counts.model_dump() for name, counts in prepared.domains.items()},
    }


def _write_domains(prepared: "Prepared") -> None:
    domains = [(name, counts.model_dump()) for name, counts in prepared.domains.items()]
    keys = domains[0][1] if domains else ()
    total = {key: sum(counts[key] for _, counts in domains) for key in keys}
    rows = [
        (
            name,
            f"{counts['train_documents']:,}",
            f"{counts['train_bytes'] / 1e6:,.2f}",
            f"{counts['train_tokens']:,}",
            f"{counts['train_bytes'] / max(counts['train_tokens'], 1):.2f}",
            f"{counts['validation_documents']:,}",
            f"{counts['validation_tokens']:,}",
        )
        for name, counts in (*domains, ("all", total))
    ]
    columns = ("domain", "documents", "MB", "tokens", "bytes/token", "held out", "tokens")
    write_table(columns, rows, numbers_from=1)
