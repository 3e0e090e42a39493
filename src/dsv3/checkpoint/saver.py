"""Saving beside the training: the caller is held up for a copy, a thread writes it."""

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Unpack

from dsv3.checkpoint.snapshot import Snapshot
from dsv3.checkpoint.store import About, CheckpointStore
from dsv3.checkpoint.tensors import Fragment
from dsv3.errors import CapacityError


class Saved(NamedTuple):
    """A checkpoint that is on the disk."""

    path: Path
    seconds: float  # from the copy to the last rename
    not_removed: str | None  # why older ones could not be removed


class Saver:
    """Writes one checkpoint at a time; a second one waits for the first: memory does not grow.

    All ranks begin and finish the same saves in the same order. From `begin` to `finish` the store
    and its collective belong to the thread.
    """

    def __init__(self, store: CheckpointStore, *, keep: int) -> None:
        self._store = store
        self._keep = keep
        self._snapshot = Snapshot()
        self._thread: threading.Thread | None = None
        self._outcome: Saved | BaseException | None = None
        self.step: int | None = None
        """The step being saved, from `begin` to `finish`."""

    @property
    def writing(self) -> bool:
        """Whether this rank's thread is still at work."""
        return self._thread is not None and self._thread.is_alive()

    def begin(self, fragments: Iterable[Fragment], **about: Unpack[About]) -> None:
        """Copy the fragments and begin to write them, as `CheckpointStore.save` does."""
        assert self._thread is None, f"step {self.step} is not finished"
        copies = self._snapshot.take(fragments)

        def write() -> Saved:
            began_s = time.monotonic()
            path = self._store.save(copies, **about)
            took_s = time.monotonic() - began_s
            not_removed = None
            try:
                self._store.retain(self._keep)
            except CapacityError as error:
                not_removed = str(error)
            return Saved(path, took_s, not_removed)

        self.step = about["step"]
        # A daemon: a rank that has lost the others must be able to end without it.
        self._thread = threading.Thread(target=self._run, args=(write,), daemon=True, name="saver")
        self._thread.start()

    def outcome(self, timeout_s: float | None = None) -> Saved | BaseException | None:
        """Wait for what was begun and look at it; None if nothing was. Raises TimeoutError."""
        if self._thread is None:
            return None
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"step {self.step} is not written after {timeout_s} s")
        return self._outcome

    def finish(self) -> Saved:
        """Wait for what was begun and be done with it; raises what it raised."""
        outcome = self.outcome()
        assert outcome is not None, "nothing was begun"
        self._thread = self._outcome = self.step = None
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _run(self, write: Callable[[], Saved]) -> None:
        try:
            self._outcome = write()
        except BaseException as error:  # noqa: BLE001 - raised by `finish`
            self._outcome = error
