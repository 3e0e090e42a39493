"""Streams, samples and entropies against plain re-computations from the jsonl file."""

import hashlib
import itertools
import json
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from dsv3.config.data import DataConfig
from dsv3.data.prepare import prepare
from dsv3.data.samples import TrainingSamples, unigram_loss, validation_samples

FRACTION, VOCABULARY, LENGTH = 0.15, 320, 32


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A prepared text of three domains of unequal size, and the records it was made of."""
    rng = random.Random(3)
    syllables = ["ba", "ko", "ri", " ", "te", ".\n", "7", "<|end_of_sentence|>", "\u00fc"]
    records = [
        {"text": "".join(rng.choices(syllables, k=rng.randint(4, 400))), "domain": domain}
        for domain, number in (("a", 150), ("b", 60), ("z/../c", 20))
        for _ in range(number)
    ]
    directory = tmp_path_factory.mktemp("text")
    path = Path(directory) / "text.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    config = DataConfig(
        source="jsonl",
        path=str(path),
        tokenizer=None,
        tokenizer_vocab_size=VOCABULARY,
        max_bytes=10**9,
        domain_shares=None,
        validation_fraction=FRACTION,
        cache_dir=str(directory / "cache"),
    )
    return prepare(config, vocab_size=VOCABULARY), records


def plain_streams(records, tokenizer, end):
    """Training stream and held-out stream per domain: hash, sort, encode, append, in a loop."""
    train, held_out = [], {}
    for record in records:
        digest = hashlib.blake2b(
            record["text"].encode(), digest_size=16, person=b"dsv3 document"
        ).digest()
        ids = [*tokenizer.encode(record["text"], add_special_tokens=False).ids, end]
        if int.from_bytes(digest[:8], "big") < FRACTION * 2**64:
            held_out.setdefault(record["domain"], []).append((digest[8:], ids))
        else:
            train.append((digest[8:], ids))

    def join(documents):
        return list(itertools.chain.from_iterable(ids for _, ids in sorted(documents)))

    return join(train), {domain: join(documents) for domain, documents in held_out.items()}


@pytest.fixture(scope="module")
def plain(text):
    prepared, records = text
    tokenizer = Tokenizer.from_file(str(prepared.tokenizer_path))
    tokenizer.encode_special_tokens = True
    return plain_streams(records, tokenizer, tokenizer.token_to_id("<|end_of_sentence|>"))


def test_streams_are_the_documents_in_hash_order_with_an_end_after_each(text, plain):
    prepared, _ = text
    train, held_out = plain
    assert prepared.train.slice(0, len(prepared.train)).tolist() == train
    found = {name: s.slice(0, len(s)).tolist() for name, s in prepared.validation.items()}
    assert found == held_out


def test_counts_are_those_of_the_documents(text, plain):
    prepared, records = text
    train, held_out = plain
    ends = Counter(record["domain"] for record in records)
    for name, counts in prepared.domains.items():
        assert counts.train_documents + counts.validation_documents == ends[name]
        texts = [record["text"] for record in records if record["domain"] == name]
        assert counts.train_bytes + counts.validation_bytes == len("".join(texts).encode())
        assert counts.validation_tokens == len(held_out[name])
        assert counts.validation_documents == held_out[name].count(prepared.end_of_sentence)
    assert sum(counts.train_tokens for counts in prepared.domains.values()) == len(train)


def test_an_epoch_shows_every_full_sample_once_and_they_overlap_by_one_token(text, plain):
    prepared, _ = text
    train, _ = plain
    samples = TrainingSamples(prepared, LENGTH, seed=5)
    number = samples.samples_per_epoch
    assert number == (len(train) - 1) // LENGTH > 100
    cut = sorted(train[i * LENGTH : i * LENGTH + LENGTH + 1] for i in range(number))
    orders = []
    for epoch in (0, 1, 7):
        order = [samples[epoch * number + i].tolist() for i in range(number)]
        assert sorted(order) == cut
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]
    # Every token but the first is a target exactly once, up to the tail that fills no sample.
    targets = Counter(itertools.chain.from_iterable(sample[1:] for sample in orders[0]))
    assert targets == Counter(train[1 : number * LENGTH + 1])


def test_a_sample_is_a_function_of_seed_and_number_alone(text):
    prepared, _ = text
    forwards = TrainingSamples(prepared, LENGTH, seed=5)
    one_by_one = [forwards[n] for n in range(600)]
    backwards = TrainingSamples(prepared, LENGTH, seed=5)
    for n in reversed(range(600)):
        assert np.array_equal(backwards[n], one_by_one[n])
    assert one_by_one[0].dtype == np.int64 and one_by_one[0].shape == (LENGTH + 1,)
    other = TrainingSamples(prepared, LENGTH, seed=6)
    assert any(not np.array_equal(other[n], one_by_one[n]) for n in range(10))
    with pytest.raises(IndexError):
        forwards[-1]
    assert forwards[10**15].shape == (LENGTH + 1,)  # no end, no memory


def test_unigram_entropy_is_the_cross_entropy_of_the_smoothed_frequencies(text, plain):
    prepared, _ = text
    train, held_out = plain
    counts = Counter(train)
    targets = list(itertools.chain.from_iterable(held_out.values()))
    nats = -math.fsum(
        math.log((counts[t] + 1) / (len(train) + prepared.vocab_size)) for t in targets
    )
    # 1e-12: sums of about 10,000 terms of equal sign in double precision, in another order
    assert prepared.unigram_entropy == pytest.approx(nats / len(targets), rel=1e-12)
    size = sum(c.validation_bytes for c in prepared.domains.values())
    assert prepared.unigram_bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-12)
    total = math.fsum(np.exp(prepared.unigram_log_probabilities).tolist())
    assert total == pytest.approx(1.0, rel=1e-12)


def test_validation_samples_are_even_over_domains_and_within_their_streams(text, plain):
    prepared, _ = text
    _, held_out = plain
    available = {name: (len(ids) - 1) // LENGTH for name, ids in held_out.items()}
    scarce, count = min(available.values()), 3 * min(available.values()) + 5
    assert sorted(available.values())[1] > scarce + 3  # the others can make up for it
    samples = validation_samples(prepared, LENGTH, count)
    taken = Counter(sample.domain for sample in samples)
    assert len(samples) == count
    assert sorted(taken.values()) == [scarce, scarce + 2, scarce + 3]
    assert all(taken[name] == scarce for name, size in available.items() if size == scarce)
    tokenizer = Tokenizer.from_file(str(prepared.tokenizer_path))
    places = {}
    for sample in samples:
        ids = held_out[sample.domain]
        cut = [ids[i * LENGTH : (i + 1) * LENGTH + 1] for i in range(available[sample.domain])]
        places.setdefault(sample.domain, []).append(cut.index(sample.ids.tolist()))
        # The byte-level alphabet: one character a byte; decoding would hide cut ones.
        tokens = [tokenizer.id_to_token(i) for i in sample.ids[1:] if i != prepared.end_of_sentence]
        assert sample.target_bytes == sum(map(len, tokens))
    for name, found in places.items():
        stretch = available[name] / len(found)  # each where one of as many equal parts begins
        assert all(0 <= i * stretch - place < 1 for i, place in enumerate(found))
    assert len(validation_samples(prepared, LENGTH, 10**6)) == sum(available.values())


def test_unigram_loss_on_all_targets_is_the_unigram_entropy(text, plain):
    prepared, _ = text
    counts = Counter(plain[0])
    samples = validation_samples(prepared, LENGTH, 12)
    targets = list(itertools.chain.from_iterable(sample.ids[1:].tolist() for sample in samples))
    size = sum(counts.values()) + prepared.vocab_size
    expected = -math.fsum(math.log((counts[t] + 1) / size) for t in targets) / len(targets)
    assert unigram_loss(prepared, samples) == pytest.approx(expected, rel=1e-12)


def test_token_bytes_add_up_to_the_text(text, plain):
    prepared, records = text
    train, held_out = plain
    everything = np.array([*train, *itertools.chain.from_iterable(held_out.values())])
    size = sum(len(record["text"].encode()) for record in records)
    assert int(prepared.token_bytes[everything].sum()) == size
    assert prepared.token_bytes[prepared.end_of_sentence] == 0
