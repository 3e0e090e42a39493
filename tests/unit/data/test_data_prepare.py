"""Preparing text: fingerprints, the cache, damage, interruption and several processes at once."""

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from dsv3.data.cache import cache_root
from dsv3.data.documents import DocumentHash
from dsv3.data.prepare import prepare
from dsv3.data.prepared import open_prepared
from dsv3.data.samples import TrainingSamples
from dsv3.errors import CapacityError, ConfigError, DataError


def fingerprint(config, vocab_size=300):
    return prepare(config, vocab_size=vocab_size).fingerprint


def test_the_fingerprint_is_of_the_text_not_of_where_or_how_it_is_stored(
    records, write_jsonl, data_config, tmp_path
):
    before = fingerprint(data_config(write_jsonl(records)))
    assert fingerprint(data_config(write_jsonl(records, "moved.jsonl"))) == before
    shuffled = random.Random(1).sample(records, len(records))
    assert fingerprint(data_config(write_jsonl(shuffled, "shuffled.jsonl"))) == before
    zipped = tmp_path / "zipped.jsonl.gz"
    zipped.write_bytes(gzip.compress((tmp_path / "text.jsonl").read_bytes()))
    assert fingerprint(data_config(zipped)) == before
    elsewhere = data_config(tmp_path / "text.jsonl", cache_dir=str(tmp_path / "elsewhere"))
    assert fingerprint(elsewhere) == before


def test_the_fingerprint_changes_with_the_text_and_every_option_that_matters(
    records, write_jsonl, data_config
):
    path = write_jsonl(records)
    fingerprints = [
        fingerprint(data_config(path)),
        fingerprint(data_config(path, tokenizer_vocab_size=290)),
        fingerprint(data_config(path, validation_fraction=0.2)),
        fingerprint(data_config(path, max_bytes=30_000)),
    ]
    relabelled = [dict(records[0], domain="other"), *records[1:]]
    fingerprints.append(fingerprint(data_config(write_jsonl(relabelled))))
    edited = [dict(records[0], text=records[0]["text"] + "!"), *records[1:]]
    fingerprints.append(fingerprint(data_config(write_jsonl(edited))))  # under the same path
    fingerprints.append(fingerprint(data_config(write_jsonl(records[1:]))))
    assert len(set(fingerprints)) == 7


def test_asked_again_the_text_is_opened_not_made(prepared_text, data_config, tmp_path):
    stages = []
    again = prepare(
        data_config(tmp_path / "text.jsonl"),
        vocab_size=300,
        progress=lambda stage, done, total: stages.append(stage),
    )
    assert again.fingerprint == prepared_text.fingerprint
    assert "encode" not in stages


def test_stages_are_reported_in_order_and_reach_their_totals(records, write_jsonl, data_config):
    seen = {}
    prepare(
        data_config(write_jsonl(records * 4)),
        vocab_size=300,
        progress=lambda stage, done, total: seen.__setitem__(stage, (done, total)),
    )
    assert list(seen) == ["collect", "train tokenizer", "encode", "write"]
    for stage in ("encode", "write"):
        assert seen[stage][0] == seen[stage][1] > 0


def test_a_text_too_large_to_hold_is_prepared_alike(
    prepared_text, data_config, tmp_path, monkeypatch
):
    monkeypatch.setattr("dsv3.data.packing.HELD_BYTES", 0)
    monkeypatch.setattr("dsv3.data.tokenizer.BATCH_BYTES", 500)
    config = data_config(tmp_path / "text.jsonl", cache_dir=str(tmp_path / "elsewhere"))
    assert fingerprint(config) == prepared_text.fingerprint


def test_the_side_of_a_document_does_not_depend_on_the_others(records, write_jsonl, data_config):
    def held_out(config):
        prepared = prepare(config, vocab_size=300)
        return {name: counts.validation_documents for name, counts in prepared.domains.items()}

    halves = [
        held_out(data_config(write_jsonl(part, f"{number}.jsonl"), validation_fraction=0.3))
        for number, part in enumerate((records[:150], records[150:]))
    ]
    whole = held_out(data_config(write_jsonl(records), validation_fraction=0.3))
    assert whole == {name: halves[0][name] + halves[1][name] for name in whole}
    assert 60 < sum(whole.values()) < 120  # 90 expected of 300, standard deviation 8


def test_a_vocabulary_that_does_not_fit_is_a_configuration_error(
    prepared_text, data_config, tmp_path
):
    with pytest.raises(ConfigError) as caught:
        prepare(data_config(tmp_path / "text.jsonl"), vocab_size=299)
    assert caught.value.exit_code == 2
    assert "data.tokenizer_vocab_size=300" in str(caught.value)
    assert "model.vocab_size=299" in str(caught.value)
    own = data_config(tmp_path / "text.jsonl", tokenizer=str(prepared_text.tokenizer_path))
    with pytest.raises(
        ConfigError, match=r"data.tokenizer=.*300 tokens do not fit model.vocab_size=299"
    ):
        prepare(own, vocab_size=299)


@pytest.mark.parametrize("documents", [1, 3])
def test_too_few_documents_for_two_splits_are_an_error_that_leaves_nothing(
    documents, records, write_jsonl, data_config, tmp_path
):
    with pytest.raises(DataError, match=f"for training: {documents}, held out: 0"):
        prepare(
            data_config(write_jsonl(records[:documents]), validation_fraction=0.001), vocab_size=300
        )
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert left == []


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def read_all(directory: Path) -> None:
    opened = open_prepared(directory)
    for stream in (opened.train, *opened.validation.values()):
        stream.slice(0, len(stream))


def test_a_flipped_bit_in_any_file_is_found_and_the_file_named(prepared_text, tmp_path):
    names = sorted(path.name for path in prepared_text.directory.iterdir())
    assert len(names) >= 6
    for name in names:
        copy = tmp_path / "copy"
        shutil.copytree(prepared_text.directory, copy)
        flip_bit(copy / name)
        with pytest.raises(DataError, match=name) as caught:
            read_all(copy)
        assert caught.value.exit_code == 6
        shutil.rmtree(copy)


def test_a_truncated_or_missing_file_is_found_when_the_text_is_opened(prepared_text, tmp_path):
    for path in sorted(prepared_text.directory.iterdir()):
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        with pytest.raises(DataError, match=path.name):
            open_prepared(prepared_text.directory)
        path.unlink()
        with pytest.raises(DataError, match=path.name):
            open_prepared(prepared_text.directory)
        path.write_bytes(content)
    assert open_prepared(prepared_text.directory).fingerprint == prepared_text.fingerprint


def test_a_token_outside_the_vocabulary_is_named_with_shard_and_offset(prepared_text):
    """A shard whose hash is right but whose ids are not: of another tokenizer."""
    import hashlib

    from dsv3.data.shards import Shard, TokenStream

    ids = np.array([5, 6, 300, 7], dtype="<u2")
    path = prepared_text.directory / "foreign.bin"
    path.write_bytes(ids.tobytes())
    shard = Shard(name=path.name, tokens=4, sha256=hashlib.sha256(ids.tobytes()).hexdigest())
    stream = TokenStream(prepared_text.directory, [shard], "<u2", 300)
    with pytest.raises(DataError, match=r"foreign.bin: token 300 at offset 2 is outside .* of 300"):
        stream.slice(0, 1)


def test_shards_of_any_length_hold_the_same_stream(
    prepared_text, data_config, tmp_path, monkeypatch
):
    monkeypatch.setattr("dsv3.data.shards.SHARD_TOKENS", 97)
    config = data_config(tmp_path / "text.jsonl", cache_dir=str(tmp_path / "small"))
    small = prepare(config, vocab_size=300)
    assert len(list(small.directory.glob("train-*.bin"))) == -(-len(small.train) // 97) > 10
    whole = prepared_text.train.slice(0, len(prepared_text.train))
    assert np.array_equal(small.train.slice(0, len(small.train)), whole)
    for start, stop in (
        (0, 0),
        (96, 98),
        (97, 97),
        (10, 500),
        (194, 291),
        (len(whole) - 1, len(whole)),
    ):
        assert np.array_equal(small.train.slice(start, stop), whole[start:stop])


KILLED = """
import os, signal, sys
from dsv3.config.data import DataConfig
from dsv3.data.documents import DocumentHash
from dsv3.data.prepare import prepare
def progress(stage, done, total):
    if stage == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
prepare(DataConfig.model_validate_json(sys.argv[1]), vocab_size=300, progress=progress)
"""


@pytest.mark.parametrize("stage", ["encode", "write"])
def test_a_killed_preparer_leaves_nothing_half_and_the_next_one_cleans_up(
    stage, records, write_jsonl, data_config, tmp_path
):
    config = data_config(write_jsonl(records))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, config.model_dump_json(), stage], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    inside = sorted((tmp_path / "cache" / "prepared").iterdir())
    assert [path.suffix for path in inside] == [".lock", ".tmp"]  # nothing under its own name
    other = data_config(config.path, validation_fraction=0.2)  # another key sweeps it away
    prepared = prepare(other, vocab_size=300)
    assert list((tmp_path / "cache" / "prepared").iterdir()) == [prepared.directory]
    assert len(prepare(config, vocab_size=300).train) > 0


def test_of_two_preparers_one_builds_and_the_other_waits(records, write_jsonl, data_config):
    config = data_config(write_jsonl(records))
    other_waits, stages, found = threading.Event(), {"a": [], "b": []}, {}
    a_builds = threading.Event()

    def of_a(stage, done, total):
        stages["a"].append(stage)
        if stage == "encode":
            a_builds.set()
            assert other_waits.wait(60)

    def of_b(stage, done, total):
        stages["b"].append(stage)
        if stage == "wait":
            other_waits.set()

    def ask(name, progress):
        found[name] = prepare(config, vocab_size=300, progress=progress).fingerprint

    first = threading.Thread(target=ask, args=("a", of_a))
    first.start()
    assert a_builds.wait(60)
    ask("b", of_b)
    first.join()
    assert found["a"] == found["b"]
    assert "wait" in stages["b"] and "encode" not in stages["b"]


def test_a_preparer_that_fails_lets_the_next_one_try(records, write_jsonl, data_config, tmp_path):
    config = data_config(write_jsonl(records))

    def full(stage, done, total):
        if stage == "write":
            raise OSError(28, "No space left on device")

    with pytest.raises(CapacityError, match=r"No space left on device.*data\.cache_dir=DIRECTORY"):
        prepare(config, vocab_size=300, progress=full)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    assert len(prepare(config, vocab_size=300).train) > 0


def test_a_cache_that_cannot_be_made_is_a_capacity_error(
    records, write_jsonl, data_config, tmp_path
):
    (tmp_path / "file").touch()
    config = data_config(write_jsonl(records), cache_dir=str(tmp_path / "file" / "cache"))
    with pytest.raises(CapacityError) as caught:
        prepare(config, vocab_size=300)
    assert caught.value.exit_code == 3
    assert "data.cache_dir=" in str(caught.value)


def test_the_users_tokenizer_gives_the_same_text(prepared_text, data_config, tmp_path):
    tokenizer = tmp_path / "tokenizer.json"
    shutil.copy(prepared_text.tokenizer_path, tokenizer)
    own = prepare(data_config(tmp_path / "text.jsonl", tokenizer=str(tokenizer)), vocab_size=300)
    assert own.fingerprint == prepared_text.fingerprint
    changed = json.loads(tokenizer.read_text())
    del changed["model"]["merges"][-1]
    tokenizer.write_text(json.dumps(changed))
    edited = prepare(data_config(tmp_path / "text.jsonl", tokenizer=str(tokenizer)), vocab_size=300)
    assert edited.fingerprint != prepared_text.fingerprint


def test_the_tokenizer_does_not_see_held_out_text(prepared_text, records, write_jsonl, data_config):
    unseen = (f"unseen unseen {number} " * 20 for number in range(1_000))
    held_out = [text for text in unseen if DocumentHash.of(text.encode()).is_validation(0.1)]
    assert len(held_out) > 50
    more = [*records, *({"text": text, "domain": "web"} for text in held_out)]
    prepared = prepare(data_config(write_jsonl(more)), vocab_size=300)
    assert prepared.domains["web"].validation_documents >= len(held_out)
    assert prepared.tokenizer_path.read_bytes() == prepared_text.tokenizer_path.read_bytes()


def test_training_the_tokenizer_is_deterministic_across_processes(prepared_text, tmp_path):
    code = (
        "import json, sys\n"
        "from dsv3.data.tokenizer import TextTokenizer\n"
        "texts = [json.loads(line)['text'] for line in open(sys.argv[1])]\n"
        "import hashlib; content = TextTokenizer.train(texts, 300).content\n"
        "print(hashlib.sha256(content.encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "text.jsonl")],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"RAYON_NUM_THREADS": str(threads), "PYTHONHASHSEED": str(threads)},
        ).stdout
        for threads in (1, 2)
    }
    assert len(digests) == 1


def test_the_cache_is_where_the_user_says_or_the_platform_does(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/a/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_root("/mine") == Path("/mine")
    assert cache_root("~/mine") == Path("/a/home/someone/mine")
    assert cache_root("~nobody-has-this-name/x") == Path("~nobody-has-this-name/x").absolute()
    assert cache_root(None) == Path("/xdg/dsv3")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_root(None) == Path("/a/home/someone/.cache/dsv3")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache_root(None) == tmp_path / f"dsv3-cache-{os.getuid()}"


def test_without_a_home_the_cache_is_private_and_a_foreign_one_refused(
    monkeypatch, prepared_text, data_config, tmp_path
):
    monkeypatch.setattr("dsv3.data.prepare.cache_root", lambda given: tmp_path / "dsv3-cache-1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = data_config(tmp_path / "text.jsonl", cache_dir=None)
    prepare(config, vocab_size=300)
    assert (tmp_path / "dsv3-cache-1").stat().st_mode & 0o77 == 0
    monkeypatch.setattr("os.getuid", lambda: 12345)
    with pytest.raises(CapacityError, match="belongs to another user"):
        prepare(config, vocab_size=300)


def test_neither_torch_nor_hydra_is_needed_to_prepare_and_read(
    prepared_text, data_config, tmp_path
):
    config = data_config(tmp_path / "text.jsonl")
    code = (
        "import sys\n"
        "from dsv3.config.data import DataConfig\n"
        "from dsv3.data.prepare import prepare\n"
        "from dsv3.data.samples import TrainingSamples\n"
        "config = DataConfig.model_validate_json(sys.argv[1])\n"
        "TrainingSamples(prepare(config, vocab_size=300), 16, 1)[3]\n"
        "print(sorted({'torch', 'hydra', 'tokenizers'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, config.model_dump_json()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "[]\n"


def test_too_little_text_for_one_batch_names_the_counts(prepared_text):
    tokens = len(prepared_text.train)
    TrainingSamples(prepared_text, 64, 1, batch_size=(tokens - 1) // 64)
    with pytest.raises(
        DataError, match=f"{tokens} training tokens make {(tokens - 1) // 64} samples"
    ):
        TrainingSamples(prepared_text, 64, 1, batch_size=(tokens - 1) // 64 + 1)
    with pytest.raises(DataError, match="make 0 samples"):
        TrainingSamples(prepared_text, tokens, 1)
