"""Pipeline methods of the report's table 2: who does what in which order, and their bubbles.

1F1B; ZB1P, which holds the weights' gradients back; DualPipe, which feeds micro batches from both
ends of the pipeline; DualPipeV, its half. Orders of the last two are those of deepseek-ai/DualPipe.
What this program trains with is in `parallel/schedule.py`: it splits no backward pass.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

Method = Literal["1f1b", "zb1p", "dualpipe", "dualpipev"]
METHODS: tuple[Method, ...] = ("1f1b", "zb1p", "dualpipe", "dualpipev")


class ChunkTimes(NamedTuple):
    """Seconds of a chunk: the layers a rank passes a micro batch through at once.

    `backward` is whole, `weights` the part of it that only the weights' gradients need. `pair` is a
    forward and a whole backward of two micro batches overlapped.
    """

    forward: float
    backward: float
    weights: float
    pair: float


class Work(NamedTuple):
    """Something a rank does: `F`, `B` (whole), `I` (inputs' gradients), `W`, or `P` (F beside B).

    `chunks` are (chunk of this rank, micro batch) of it, of a pair the forward's, then the
    backward's.
    """

    kind: str
    chunks: tuple[tuple[int, int], ...]


def bubble_s(method: Method, ranks: int, times: ChunkTimes) -> float:
    """Idle seconds of a rank in a step (report, table 2; DualPipeV: DualPipe on half the ranks)."""
    f, b, w, pair = times
    match method:
        case "1f1b":
            return (ranks - 1) * (f + b)
        case "zb1p":
            return (ranks - 1) * (f + b - 2 * w)
        case "dualpipe":
            return (ranks / 2 - 1) * (pair + b - 3 * w)
        case "dualpipev":
            return (ranks - 1) * (pair + b - 3 * w)


def copies_of_parameters(method: Method) -> int:
    """Stages of the model a rank holds, in multiples of the model over its ranks (table 2)."""
    return 2 if method == "dualpipe" else 1


def micro_batches_kept(method: Method, ranks: int) -> float:
    """Activations of a rank at most, in micro batches of the model over its ranks (table 2).

    The table counts chunks. DualPipeV's are half as large as those of as many ranks with one each.
    """
    match method:
        case "1f1b" | "zb1p":
            return ranks
        case "dualpipe":
            return ranks + 1
        case "dualpipev":
            return ranks + 0.5


def orders(method: Method, ranks: int, micro_batches: int) -> list[list[Work]]:
    """Everything each rank does in a step, in its order.

    Raises AssertionError if the method has no steady state with so few micro batches.
    """
    match method:
        case "1f1b":
            return [list(_split_free(ranks, micro_batches, rank)) for rank in range(ranks)]
        case "zb1p":
            return [list(_zero_bubble(ranks, micro_batches, rank)) for rank in range(ranks)]
        case "dualpipev":
            return [_folded(ranks, micro_batches, rank) for rank in range(ranks)]
        case "dualpipe":
            half = ranks // 2
            assert ranks % 2 == 0 and micro_batches % 2 == 0, f"{ranks=} {micro_batches=}"
            each = [min(rank, ranks - 1 - rank) for rank in range(ranks)]
            # The second half of the ranks sees the two directions exchanged.
            return [
                _turned(_folded(half, micro_batches // 2, near), rank >= half)
                for rank, near in enumerate(each)
            ]


def _split_free(ranks: int, micro_batches: int, rank: int) -> Iterator[Work]:
    ahead = min(ranks - 1 - rank, micro_batches)
    for number in range(micro_batches + ahead):
        if number < micro_batches:
            yield Work("F", ((0, number),))
        if number >= ahead:
            yield Work("B", ((0, number - ahead),))


def _zero_bubble(ranks: int, micro_batches: int, rank: int) -> Iterator[Work]:
    """ZB-H1 (arXiv 2401.10241): a rank holds as many weights' gradients back as come before it."""
    ahead = min(ranks - 1 - rank, micro_batches)
    weights = 0
    for number in range(micro_batches + ahead):
        if number < micro_batches:
            yield Work("F", ((0, number),))
        back = number - ahead
        if back >= 0:
            yield Work("I", ((0, back),))
            if back >= rank:
                yield Work("W", ((0, weights),))
                weights += 1
    yield from (Work("W", ((0, number),)) for number in range(weights, micro_batches))


def _folded(ranks: int, micro_batches: int, rank: int) -> list[Work]:
    """DualPipeV's eight steps for a rank with chunks 0 and 1."""
    after, upto = ranks - 1 - rank, rank + 1
    steady = micro_batches - 2 * ranks + upto
    assert steady >= 1, f"{micro_batches=} are too few for {ranks=} folded"
    do = _Folded()
    for _ in range(2 * after):
        do.forward(0)
    for _ in range(upto):
        do.forward(0)
        do.forward(1)
    for _ in range(after):
        do.inputs(1)
        do.weights()
        do.forward(1)
    for turn in range(steady):
        if turn == 0 and after == 0:  # apart, which shortens the bubble
            do.forward(0)
            do.backward(1)
        else:
            do.pair(0, 1)
        do.pair(1, 0)
    for _ in range(after):
        do.backward(1)
        do.pair(1, 0)
    splits = False
    for turn in range(upto):
        splits = splits or (turn == upto // 2 and rank % 2 == 1)
        (do.inputs if splits else do.backward)(1)
        splits = splits or (turn == upto // 2 and rank % 2 == 0)
        (do.inputs if splits else do.backward)(0)
    for _ in range(after):
        do.weights()
        do.inputs(0)
    for _ in range(upto):
        do.weights()
    assert not do.held_back, f"{do.held_back=} {rank=}"
    return do.found


class _Folded:
    """Numbers what is done, and remembers whose weights' gradients are still to be made."""

    def __init__(self) -> None:
        self.found: list[Work] = []
        self.held_back: list[tuple[int, int]] = []
        self._next = {"F": [0, 0], "B": [0, 0]}

    def forward(self, chunk: int) -> None:
        self.found.append(Work("F", (self._numbered("F", chunk),)))

    def backward(self, chunk: int) -> None:
        self.found.append(Work("B", (self._numbered("B", chunk),)))

    def inputs(self, chunk: int) -> None:
        place = self._numbered("B", chunk)
        self.held_back.append(place)
        self.found.append(Work("I", (place,)))

    def weights(self) -> None:
        self.found.append(Work("W", (self.held_back.pop(0),)))

    def pair(self, ahead: int, back: int) -> None:
        both = (self._numbered("F", ahead), self._numbered("B", back))
        self.found.append(Work("P", both))

    def _numbered(self, kind: str, chunk: int) -> tuple[int, int]:
        number = self._next[kind][chunk]
        self._next[kind][chunk] += 1
        return chunk, number


def _turned(order: list[Work], turn: bool) -> list[Work]:
    if not turn:
        return order
    return [
        Work(kind, tuple((1 - chunk, number) for chunk, number in chunks)) for kind, chunks in order
    ]
