"""What looks like a secret is not written and not printed: one place decides, for every output.

Hidden are the values of variables, keys and options with a secret's name, credentials and queries
of addresses, private keys, and what has the form of a well-known service's token. Standard library
only: errors, logs and records of every package come through here.
"""

import logging
import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO

HIDDEN = "***"
"""Stands for what is not shown."""
SHORTEST_VALUE = 8
"""A shorter value of a variable is not looked for in texts: it would be found in innocent words."""

_STRONG = {"authorization", "credential", "credentials", "passphrase", "passwort", "secrets"}
_ENDINGS = ("password", "passwd", "secret", "apikey", "accesskey", "privatekey", "accesstoken")
# Words of programs, too (a dictionary's key, a text's token): in running text it depends on the
# value and on the other words of the name.
_WEAK = {"auth", "cookie", "key", "keys", "pat", "pwd", "token"}
_MAKE_STRONG = {"access", "api", "auth", "bearer", "private", "refresh", "session", "signing"}

_URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s@'\"]+@")
_URL_QUERY = re.compile(r"(://[^\s?'\"]*\?)[^\s'\"]+")
_PRIVATE_KEY = re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?=-----END|\Z)", re.DOTALL)
_KNOWN_FORMS = re.compile(
    r"\b(?:hf_|gh[opusr]_|github_pat_|glpat-|sk-|xox[abeprs]-|AKIA|ASIA)[A-Za-z0-9_-]{16,}"
)
_NAME = re.compile(r"(?<![\w.-])(?P<dashes>-{0,2})(?P<name>[A-Za-z_][\w.-]*)")
# name = value, name: value, "name": "value"; behind an option also a space
_VALUE = re.compile(
    r"(?P<between>[\"']?\s*[=:]\s*|[ \t]+)(?P<scheme>(?:bearer|basic)\s+)?"
    r"(?P<quote>[\"']?)(?P<value>(?<=\")[^\"\n]+|(?<=')[^'\n]+|[^\s\"',;)\]}]+)",
    re.IGNORECASE,
)


def is_secret_name(name: str) -> bool:
    """Whether a variable, key or option of this name holds a secret.

    Whole words of its last part count: `schedule.total_tokens`, `data.tokenizer` and
    `flops_per_token` are none.
    """
    words = _words(name)
    return _is_strong(name) or (not _WEAK.isdisjoint(words) and words[-2:-1] != ["per"])


def redact(text: str) -> str:
    """`text` without secrets; what else it says stays as it is."""
    for value in _secret_values():
        text = text.replace(value, HIDDEN)
    text = _URL_CREDENTIALS.sub(f"{HIDDEN}@", text)
    text = _URL_QUERY.sub(rf"\1{HIDDEN}", text)
    text = _PRIVATE_KEY.sub(rf"\1{HIDDEN}", text)
    text = _KNOWN_FORMS.sub(HIDDEN, text)
    return _hide_assigned(text)


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """Words of a command line: as `redact`, and whole `api_key=...`, `--token=...`, `--token X`."""
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        secret = is_secret_name(name) and not re.search(r"\s", name)
        if hide_next and not argument.startswith("-"):
            shown.append(HIDDEN)
        elif equals and secret:
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(redact(argument))
        hide_next = argument.startswith("-") and secret and not equals
    return shown


def redact_data(data: Any) -> Any:
    """Nested plain data without secrets: texts as `redact`, lists of texts as command lines.

    Under a secret's name nothing is shown but null, true and false, and numbers if it is one that
    programs use, too.
    """
    if isinstance(data, str):
        return redact(data)
    if isinstance(data, Mapping):
        return {redact_data(name): _entry(name, value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        if all(isinstance(item, str) for item in data):
            return redact_arguments(data)
        return [redact_data(item) for item in data]
    return data


def holder_of_secret(value: str) -> str | None:
    """Where in words a secret in `value` comes from, without it; None if there is none."""
    for name in _secret_variables():
        if os.environ[name] in value:
            return f"the value of the environment variable {name}"
    if _URL_CREDENTIALS.search(value) or _URL_QUERY.search(value):
        return "credentials in an address"
    if _KNOWN_FORMS.search(value) or _PRIVATE_KEY.search(value):
        return "what looks like a token"
    return None


def without_secrets(environment: Mapping[str, str], *, kept: Iterable[str] = ()) -> dict[str, str]:
    """`environment` for a process that needs no secrets but the ones `kept`."""
    kept = set(kept)
    return {n: v for n, v in environment.items() if n in kept or not is_secret_name(n)}


def format_exception(error: BaseException) -> str:
    """The traceback of `error` as Python prints it, without secrets."""
    return redact("".join(traceback.format_exception(error)))


def print_no_secret_when_lost() -> None:
    """Have exceptions that nothing catches printed without secrets."""

    def show(
        _kind: type[BaseException], error: BaseException, _traceback: TracebackType | None
    ) -> None:
        sys.stderr.write(format_exception(error))

    sys.excepthook = show


class RedactingFormatter(logging.Formatter):
    """A log's formatter: messages and tracebacks without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, or lines, of `record`."""
        return redact(super().format(record))


class RedactingStream:
    """Passes text on to `stream`, each piece without secrets: for what other libraries print."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text` and say that all of it was taken."""
        self._stream.write(redact(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _entry(name: Any, value: Any) -> Any:
    if isinstance(name, str) and is_secret_name(name) and not isinstance(value, Mapping):
        is_figure = isinstance(value, int | float) and not _is_strong(name)
        return value if value is None or isinstance(value, bool) or is_figure else HIDDEN
    return redact_data(value)


def _words(name: str) -> list[str]:
    last = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.rpartition(".")[2])
    return re.split(r"[^a-z0-9]+", last.lower())


def _is_strong(name: str) -> bool:
    words = _words(name)
    if not _STRONG.isdisjoint(words) or any(word.endswith(_ENDINGS) for word in words):
        return True
    return not _WEAK.isdisjoint(words) and not _MAKE_STRONG.isdisjoint(words)


def _hide_assigned(text: str) -> str:
    """Hide values behind the names of secrets in running text, logs, YAML, JSON and code."""
    pieces: list[str] = []
    shown_to = 0
    for name in _NAME.finditer(text):
        if name.start() < shown_to or not is_secret_name(name["name"]):
            continue
        value = _VALUE.match(text, name.end())
        if value is not None and _is_secret(name, value):
            pieces += [text[shown_to : value.start("value")], HIDDEN]
            shown_to = value.end()
    return "".join([*pieces, text[shown_to:]])


def _is_secret(name: re.Match[str], found: re.Match[str]) -> bool:
    """Whether the value behind a secret's name is one: names of programs stay readable."""
    value, between = found["value"], found["between"]
    if value == HIDDEN or value.lower() in {"null", "none", "true", "false"}:
        return False
    if not between.strip():  # `--token value`, and no sentence about a token
        return name["dashes"] == "--"
    if re.fullmatch(r"[\d.,]{1,15}", value) and not _is_strong(name["name"]):
        return False
    if found["scheme"] is not None or _is_strong(name["name"]) or _looks_random(value):
        return True
    direct = between == "=" or found["quote"] != ""
    words = _words(name["name"])  # a KeyError, a token_count are none
    variable = name["name"].isupper() and not value.isupper()  # KEY=VALUE is a usage line's
    return direct and words[-1] in _WEAK and (len(words) > 1 or variable)


def _looks_random(value: str) -> bool:
    """Long, of letters and digits: no word, and no name in a program."""
    return (
        len(value) >= 16
        and re.fullmatch(r"[\w+/=.~-]+", value) is not None
        and any(c.isdigit() for c in value)
        and any(c.isalpha() for c in value)
    )


def _secret_variables() -> list[str]:
    found = [
        name
        for name, value in os.environ.items()
        if len(value) >= SHORTEST_VALUE and not value.startswith("/") and is_secret_name(name)
    ]
    return sorted(found, key=lambda name: len(os.environ[name]), reverse=True)


def _secret_values() -> list[str]:
    return [os.environ[name] for name in _secret_variables()]
