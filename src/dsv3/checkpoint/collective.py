"""What a checkpoint needs from the ranks: exchange small reports, and fail together."""

from collections.abc import Callable
from typing import Any, Protocol

from dsv3.errors import CapacityError, CheckpointError, Dsv3Error

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
        """Return every rank's value, in the order of the ranks (collective)."""


class Solo:
    """The only rank."""

    rank = 0
    size = 1

    def all_gather(self, value: Json) -> list[Json]:
        """Return the value in a list."""
        return [value]


def together(collective: Collective, action: Callable[[], Json]) -> list[Json]:
    """Run `action` on every rank and return all results; if it fails on one, all ranks raise.

    Raises this rank's own error, or for the failure of another one the same kind of error with that
    rank's message.
    """
    error: Exception | None = None
    value: Json = None
    try:
        value = action()
    except Exception as caught:  # noqa: BLE001 - every rank must reach the exchange; raised below
        error = caught
    report = {"value": value, "error": None if error is None else _describe(error)}
    reports = collective.all_gather(report)
    if error is not None:
        raise error
    for rank, other in enumerate(reports):
        if other["error"] is not None:
            kind = CapacityError if other["error"]["capacity"] else CheckpointError
            raise kind(f"rank {rank}: {other['error']['message']}")
    return [other["value"] for other in reports]


def on_first(collective: Collective, action: Callable[[], Json]) -> Json:
    """Run `action` on rank 0 only and return its result on every rank; all raise if it fails."""
    return together(collective, lambda: action() if collective.rank == 0 else None)[0]


def _describe(error: Exception) -> dict[str, Json]:
    message = str(error) if isinstance(error, Dsv3Error | OSError) else repr(error)
    return {"message": message, "capacity": isinstance(error, CapacityError | OSError)}
