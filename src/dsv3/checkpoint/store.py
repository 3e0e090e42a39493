"""The checkpoints of one run: save, find the newest good one, load it, keep a few."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict, Unpack

import torch

from dsv3.checkpoint import durable
from dsv3.checkpoint.collective import Collective, Json, Solo, on_first, together
from dsv3.checkpoint.manifest import ForeignCheckpointError, Identity
from dsv3.checkpoint.reader import Checkpoint, checkpoint_paths, open_checkpoint
from dsv3.checkpoint.tensors import Fragment, entries, read_into, specs
from dsv3.checkpoint.writer import Header, write_checkpoint
from dsv3.errors import CheckpointError
from dsv3.files import storage_error


class Skipped(NamedTuple):
    """A checkpoint that was passed over, and why."""

    path: Path
    reason: str


class Search(NamedTuple):
    """The newest good checkpoint, verified to the last byte, and the newer ones that are not."""

    checkpoint: Checkpoint | None
    skipped: tuple[Skipped, ...]


class About(TypedDict):
    """What a checkpoint says beside its tensors.

    `state` is JSON of the run (rank 0's counts), `rank_state` JSON of this rank. `before_publish`
    is called on rank 0 when all else is on the disk.
    """

    step: int
    optimizer_step: int
    attempt: int
    layout: dict[str, Json]
    state: dict[str, Json]
    rank_state: dict[str, Json]
    before_publish: NotRequired[Callable[[], None]]


class CheckpointStore:
    """The directory `checkpoints/` of a run, for the holder of the run's lock."""

    def __init__(
        self, directory: Path, identity: Identity, *, collective: Collective | None = None
    ) -> None:
        self.directory = directory
        self._identity = identity
        self._collective = Solo() if collective is None else collective
        self._verified: set[Path] = set()  # written or hashed by this process

    def forget(self) -> None:
        """Verify again what this process has written or hashed, before it is trusted."""
        self._verified.clear()

    def clean(self) -> list[str]:
        """Remove what crashed writers left behind (collective); returns their names."""
        names: list[str] = on_first(self._collective, lambda: durable.clean(self.directory))
        return names

    def save(self, fragments: Iterable[Fragment], **about: Unpack[About]) -> Path:
        """Write `step-N` from every rank's fragments (collective), replacing one of that step.

        Raises CapacityError if the storage fails, NumericHealthError if a fragment is not finite;
        the older checkpoints are as they were.
        """
        header = Header(
            self._identity,
            about["step"],
            about["optimizer_step"],
            about["attempt"],
            about["layout"],
        )
        path = write_checkpoint(
            self.directory,
            header,
            entries(fragments),
            state=about["state"],
            rank_state=about["rank_state"],
            collective=self._collective,
            before_publish=about.get("before_publish", _nothing),
        )
        self._verified.add(path)
        return path

    def scan(self) -> list[Checkpoint | Skipped]:
        """Open every checkpoint, the newest first, without reading the tensors."""
        found: list[Checkpoint | Skipped] = []
        for path in self._paths():
            try:
                found.append(self._open(path))
            except CheckpointError as error:
                found.append(Skipped(path, str(error)))
        return found

    def find_newest(self) -> Search:
        """Find the newest checkpoint whose every byte is good (collective)."""
        skipped = []
        for path in self._paths():
            try:
                checkpoint = self._open(path)
                self._verify(checkpoint)
            except CheckpointError as error:
                skipped.append(Skipped(path, str(error)))
            else:
                return Search(checkpoint, tuple(skipped))
        return Search(None, tuple(skipped))

    def require(
        self,
        checkpoint: Checkpoint,
        expected: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    ) -> None:
        """Raise CheckpointError with a table unless the checkpoint holds the expected tensors."""
        checkpoint.require(specs(expected), self._collective)

    def load(self, checkpoint: Checkpoint, fragments: Iterable[Fragment]) -> None:
        """Fill this rank's fragments (collective) from a checkpoint of any layout."""
        if checkpoint.path not in self._verified:
            self._verify(checkpoint)
        together(self._collective, lambda: read_into(checkpoint, fragments))

    def retain(self, keep: int) -> list[Path]:
        """Remove all but the `keep` newest good checkpoints (collective); returns what went.

        Nothing goes before `keep` good ones are counted, each verified by this process. What is
        newer than the last of them stays, good or not, and so does what is not this run's. Raises
        CapacityError if one that is to go cannot.
        """
        assert keep >= 2, f"{keep=}"
        kept = 0
        removed = []
        for path in self._paths():
            try:
                checkpoint = self._open(path)
                if kept < keep:
                    self._verify(checkpoint)
                    kept += 1
                    continue
            except ForeignCheckpointError:
                continue
            except CheckpointError:
                if kept < keep:
                    continue
            on_first(self._collective, partial(_remove, path))
            self._verified.discard(path)
            removed.append(path)
        return removed

    def _paths(self) -> list[Path]:
        names = on_first(
            self._collective, lambda: [path.name for path in checkpoint_paths(self.directory)]
        )
        return [self.directory / name for name in names]

    def _open(self, path: Path) -> Checkpoint:
        """Open on rank 0 and tell the others: of N ranks, each would read N manifests."""

        def opened() -> Json:
            try:
                return open_checkpoint(path, self._identity).record()
            except CheckpointError as error:
                foreign = isinstance(error, ForeignCheckpointError)
                return {"refused": str(error), "foreign": foreign}

        found = on_first(self._collective, opened)
        if "refused" in found:
            kind = ForeignCheckpointError if found["foreign"] else CheckpointError
            raise kind(found["refused"])
        return Checkpoint.from_record(path, found)

    def _verify(self, checkpoint: Checkpoint) -> None:
        if checkpoint.path not in self._verified:
            checkpoint.verify(self._collective)
            self._verified.add(checkpoint.path)


def _remove(path: Path) -> None:
    try:
        durable.remove(path)
    except OSError as error:
        raise storage_error(path, error, "remove it", what="cannot be removed") from error


def _nothing() -> None:
    pass
