"""What a checkpoint needs from the ranks: exchange small reports, and fail together."""

from collections.abc import Callable
from typing import Any, Protocol

from dsv3.errors import CapacityError, CheckpointError, Dsv3Error, Problem

Json = Any  # None, bool, int, float, str, list and dict with string keys, nested


class Collective(Protocol):
    """The ranks that save and load together; values are JSON, never pickled objects."""

    @property
    def rank(self) -> int:
        """This process, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    def all_gather(self, value: Json) -> list[Json]:
        """Return every rank's value, in the order of the ranks (collective).

        Every rank receives as much as the largest value times the ranks: for small ones.
        """

    def broadcast(self, value: Json) -> Json:
        """Return rank 0's value on every rank (collective)."""


class Solo:
    """The only rank."""

    rank = 0
    size = 1

    def all_gather(self, value: Json) -> list[Json]:
        """Return the value in a list."""
        return [value]

    def broadcast(self, value: Json) -> Json:
        """Return the value."""
        return value


def together(collective: Collective, action: Callable[[], Json]) -> list[Json]:
    """Run `action` on every rank and return all results; if it fails on one, all ranks raise.

    Raises this rank's own error, or for the failure of another one the same kind of error with that
    rank's problems.
    """
    error: Exception | None = None
    value: Json = None
    try:
        value = action()
    except Exception as caught:  # noqa: BLE001 - every rank must reach the exchange; raised below
        error = caught
    report = {"value": value, "error": None if error is None else _named(error).record()}
    reports = collective.all_gather(report)
    if error is not None:
        raise error
    for rank, other in enumerate(reports):
        if other["error"] is not None:
            raise _of_rank(rank, Dsv3Error.from_record(other["error"]))
    return [other["value"] for other in reports]


def on_first(collective: Collective, action: Callable[[], Json]) -> Json:
    """Run `action` on rank 0 only and return its result on every rank; all raise if it fails."""
    results: list[Json] = []
    together(collective, lambda: results.append(action()) if collective.rank == 0 else None)
    return collective.broadcast(results[0] if results else None)


def _named(error: Exception) -> Dsv3Error:
    if isinstance(error, Dsv3Error):
        return error
    return CapacityError(str(error)) if isinstance(error, OSError) else CheckpointError(repr(error))


def _of_rank(rank: int, error: Dsv3Error) -> Dsv3Error:
    first, *rest = error.problems
    said = f"{first.setting}: {first.rule}" if first.setting else first.rule
    return type(error)([Problem(f"rank {rank}", said, first.remedy), *rest])
