"""What is hidden, and what is not: a message without its figures helps nobody."""

import io
import json
import logging
import subprocess
import sys

import pytest

from dsv3.errors import ConfigError, Problem
from dsv3.redaction import (
    RedactingFormatter,
    RedactingStream,
    format_exception,
    holder_of_secret,
    is_secret_name,
    redact,
    redact_arguments,
    redact_data,
    without_secrets,
)

SENTINEL = "SENTINEL0123456789"
TOKEN = "hf_" + "aB3" * 8


@pytest.fixture
def _variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SENTINEL)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "get https://me:pass@example.org/x.jsonl?sig=abc now",
            "get https://***@example.org/x.jsonl?*** now",
        ),
        ("api_key=hunter2", "api_key=***"),
        ("wandb.apiKey: hunter2, next", "wandb.apiKey: ***, next"),
        ("password = 'two words'", "password = '***'"),
        ('{"secret": "hunter2", "b": 1}', '{"secret": "***", "b": 1}'),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("train --token hunter2 --strict", "train --token *** --strict"),
        ("HF_TOKEN=hunter2 dsv3 train", "HF_TOKEN=*** dsv3 train"),
        ("key: 0123456789abcdef", "key: ***"),
        (f"sent {TOKEN} twice", "sent *** twice"),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
            "-----BEGIN RSA PRIVATE KEY-----***-----END RSA PRIVATE KEY-----",
        ),
        (f"+x = '{SENTINEL}'", "+x = '***'"),
    ],
)
@pytest.mark.usefixtures("_variable")
def test_secrets_in_texts_are_hidden_and_the_rest_is_kept(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown, "what passes two hands stays as it is"


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/a@b and me@example.org",
        "for key in keys: token = tokens[key]",
        "def f(key: str, token_count: int = 3) -> None:",
        "KeyError: 'model.hidden_size'",
        "is not of the form key=value; Usage: dsv3 train [KEY=VALUE]...",
        "schedule.total_tokens=1000 data.tokenizer=/a/tokenizer.json",
        "api_key=",
        "next_token=17, flops_per_token=many",
        "password: null",
        "a token is three letters long",
        "error[config]: seed=x: must be a whole number",
    ],
)
def test_what_only_looks_like_a_secret_is_kept(text: str) -> None:
    assert redact(text) == text


def test_words_of_a_command_line_are_hidden_whole() -> None:
    harmless = ["schedule.total_tokens=1000", "--config-dir", "here", "model=moe_tiny", "-m"]
    assert redact_arguments(harmless) == harmless
    assert redact_arguments(
        ["--token", "two words", "--auth=x y", "foo.key=a b", "--key", "-m"]
    ) == (["--token", "***", "--auth=***", "foo.key=***", "--key", "-m"])


@pytest.mark.usefixtures("_variable")
def test_nested_data_keep_their_shape() -> None:
    data = {
        "api_key": 12345678,
        "token": None,
        "next_token": 17,
        "flops_per_token": 2.5e11,
        "password": {"min_length": 3, "secret": ["a", "b"]},
        SENTINEL: [1.5, True, [f"x {SENTINEL}"]],
        "argv": ["--token", "hunter2"],
    }
    assert redact_data(data) == {
        "api_key": "***",
        "token": None,
        "next_token": 17,
        "flops_per_token": 2.5e11,
        "password": {"min_length": 3, "secret": "***"},
        "***": [1.5, True, ["x ***"]],
        "argv": ["--token", "***"],
    }


def test_names_of_secrets() -> None:
    secret = "WANDB_API_KEY HF_TOKEN AWS_SECRET_ACCESS_KEY PGPASSWORD awsSecretKey a.b.auth --token"
    assert all(map(is_secret_name, secret.split()))
    other = "schedule.total_tokens data.tokenizer flops_per_token TOKENIZERS_PARALLELISM monkey"
    assert not any(map(is_secret_name, other.split()))


@pytest.mark.usefixtures("_variable")
def test_a_value_with_a_secret_is_told_by_where_it_comes_from() -> None:
    assert holder_of_secret(f"runs/{SENTINEL}") == (
        "the value of the environment variable AWS_SECRET_ACCESS_KEY"
    )
    assert holder_of_secret("s3://me:pass@bucket/x") == "credentials in an address"
    assert holder_of_secret(TOKEN) == "what looks like a token"
    assert holder_of_secret("/data/part-?.jsonl") is None


@pytest.mark.usefixtures("_variable")
def test_errors_are_without_secrets_from_the_start() -> None:
    problem = Problem(f"api_key={SENTINEL}", f"is {SENTINEL}", f"not {SENTINEL}")
    error = ConfigError(problem)
    told = json.dumps([error.record(), *error.lines(), str(error), repr(error)])
    assert SENTINEL not in told
    assert error.problems[0].setting == "api_key=***"


@pytest.mark.usefixtures("_variable")
def test_tracebacks_logs_and_streams_are_without_secrets() -> None:
    try:
        raise OSError(f"cannot reach https://me:pw@example.org with {SENTINEL}")
    except OSError as raised:
        error = raised
    assert "OSError: cannot reach https://***@example.org with ***" in format_exception(error)
    record = logging.LogRecord(
        "x", 10, "f", 1, "%s", (SENTINEL,), (type(error), error, error.__traceback__)
    )
    told = RedactingFormatter().format(record)
    assert told.startswith("***\nTraceback")
    assert SENTINEL not in told
    stream = io.StringIO()
    print(SENTINEL, "there", file=RedactingStream(stream))
    assert stream.getvalue() == "*** there\n"


@pytest.mark.usefixtures("_variable")
def test_an_exception_that_nothing_catches_is_printed_without_secrets() -> None:
    code = (
        "from dsv3.redaction import print_no_secret_when_lost\n"
        "print_no_secret_when_lost()\n"
        "import os; raise ValueError(os.environ['AWS_SECRET_ACCESS_KEY'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.endswith("ValueError: ***\n")


def test_a_process_that_needs_no_secrets_gets_none() -> None:
    environment = {"WANDB_API_KEY": "a", "HF_TOKEN": "b", "HOME": "/"}
    assert without_secrets(environment) == {"HOME": "/"}
    assert without_secrets(environment, kept=["HF_TOKEN"]) == {"HOME": "/", "HF_TOKEN": "b"}
