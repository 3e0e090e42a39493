"""The tokenizer: lossless, byte-level, with its special tokens out of the text's reach."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from dsv3.data.tokenizer import SPECIAL_TOKENS, TextTokenizer, batches
from dsv3.errors import DataError

TEXTS = ["def f(x):\n    return x + 12345\n", "The router sends each token to 8 experts.\n\n"] * 50
TRAINED = TextTokenizer.train(TEXTS, 320)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_every_text_comes_back_and_its_bytes_are_counted(text):
    (ids,) = TRAINED.encode([text])
    assert TRAINED.decode(ids) == text
    assert int(TRAINED.token_bytes()[ids].sum()) == len(text.encode())
    assert ids.size == 0 or ids.max() < TRAINED.vocab_size


def test_vocabulary_is_specials_bytes_and_merges():
    assert 261 < TRAINED.vocab_size <= 320  # this small text runs out of merges
    sizes = TRAINED.token_bytes()
    assert sizes[:5].tolist() == [0] * 5
    assert (sizes[5:261] == 1).all() and (sizes[261:] >= 2).all()
    assert TextTokenizer.train(TEXTS, 261).vocab_size == 261
    assert TRAINED.end_of_sentence == SPECIAL_TOKENS.index("<|end_of_sentence|>")


def test_a_special_token_in_a_text_is_text():
    (ids,) = TRAINED.encode(["a<|end_of_sentence|>b"])
    assert TRAINED.end_of_sentence not in ids
    assert TRAINED.decode(ids) == "a<|end_of_sentence|>b"
    reopened = TextTokenizer(TRAINED.content, name="x")  # the file does not hold this setting
    assert reopened.encode(["a<|end_of_sentence|>b"])[0].tolist() == ids.tolist()


def test_numbers_are_cut_into_at_most_three_digits_and_marks_take_their_line_breaks():
    tokenizer = TextTokenizer.train(["1234567 = x;\n\n"] * 100, 400)
    (ids,) = tokenizer.encode(["1234567 = x;\n\n"])
    assert [tokenizer.decode([i]) for i in ids] == ["123", "456", "7", " =", " x", ";\n\n"]


def test_truncation_and_padding_of_a_users_tokenizer_are_switched_off():
    tokenizer = Tokenizer.from_str(TRAINED.content)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    own = TextTokenizer(tokenizer.to_str(), name="x")
    assert own.encode(TEXTS[:1])[0].tolist() == TRAINED.encode(TEXTS[:1])[0].tolist()


@pytest.mark.parametrize(
    "end", ["<\uff5cend\u2581of\u2581sentence\uff5c>", "<|endoftext|>", "</s>"]
)
def test_the_end_token_of_other_families_is_found(end):
    content = TRAINED.content.replace("<|end_of_sentence|>", end)
    assert TextTokenizer(content, name="x").end_of_sentence == 1


def word_level() -> str:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        TEXTS, trainers.WordLevelTrainer(special_tokens=["<unk>", "</s>"], show_progress=False)
    )
    return tokenizer.to_str()


def without(*paths: str) -> str:
    """The trained tokenizer with parts of its description left out, or emptied."""
    description = json.loads(TRAINED.content)
    for path in paths:
        *above, last = path.split(".")
        part = description
        for name in above:
            part = part[name]
        if last in ("vocab", "merges"):
            part[last].clear()
        else:
            del part[last]
    return json.dumps(description)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a tokenizer.json"),
        ("{}", "not a tokenizer.json"),
        (json.dumps({"version": "9"}), "not a tokenizer.json"),
        (TRAINED.content.replace("<|end_of_sentence|>", "<|stop|>"), "none of the end-of-document"),
        (word_level(), "not byte-level"),
        (without("decoder"), "not byte-level"),
        (without("added_tokens", "model.vocab", "model.merges"), "no token for 243 of the bytes"),
        (without("model.vocab.e", "model.merges"), "no token for 1 of the bytes"),
    ],
)
def test_an_unusable_tokenizer_is_a_data_error_that_names_it(content, message, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        TextTokenizer.read(str(path))
    assert f"data.tokenizer={path}" in str(caught.value)


def test_a_missing_or_binary_tokenizer_is_a_data_error(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\x00")
    for name, message in (
        ("missing", "cannot be read: No such file or directory$"),
        (".", "cannot be read: Is a directory$"),
        ("binary", "byte 0 is not UTF-8$"),
    ):
        with pytest.raises(DataError, match=message):
            TextTokenizer.read(str(tmp_path / name))


def test_what_the_file_leaves_out_is_as_the_library_reads_it():
    description = json.loads(TRAINED.content)
    for key in ("truncation", "padding", "normalizer", "post_processor"):
        del description[key]
    for number, token in enumerate(description["added_tokens"]):
        token["id"] = 10**9 + number  # those of the vocabulary stand
    own = TextTokenizer(json.dumps(description), name="x")
    assert own.vocab_size == TRAINED.vocab_size
    assert (own.token_bytes() == TRAINED.token_bytes()).all()


def test_batches_keep_the_order_and_are_bounded(monkeypatch):
    monkeypatch.setattr("dsv3.data.tokenizer.BATCH_BYTES", 10)
    texts = ["a" * n for n in (4, 4, 4, 30, 1, 1)]
    found = list(batches((text, len(text)) for text in texts))
    assert [text for batch in found for text in batch] == texts
    assert [len(batch) for batch in found] == [3, 1, 2]
