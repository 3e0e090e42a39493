"""The generated `math` domain: work sheets of questions and answers, the same everywhere."""

from collections.abc import Iterator
from random import Random

from dsv3.data.documents import Document
from dsv3.data.questions import QUESTIONS

FIRST_SEED = 1904_01557  # the text is one fixed corpus; a run's seed does not touch it


def worksheets(max_bytes: int) -> Iterator[Document]:
    """Work sheets of 8 to 32 questions of one kind each, up to `max_bytes` UTF-8 bytes in all."""
    written, number = 0, 0
    while True:
        text = worksheet(number)
        written += len(text)  # ASCII: one byte a character
        if written > max_bytes:
            return
        yield Document("math", text)
        number += 1


def worksheet(number: int) -> str:
    """The n-th work sheet; kinds of questions take turns."""
    rng = Random(FIRST_SEED + number)  # noqa: S311 - text, not secrets
    ask = QUESTIONS[number % len(QUESTIONS)]
    pairs = (ask(rng) for _ in range(rng.randint(8, 32)))
    return "\n".join(f"{question}\n{answer}" for question, answer in pairs) + "\n"
