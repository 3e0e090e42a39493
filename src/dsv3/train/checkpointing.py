"""When a run saves and where it goes on: the engine's fragments meet the checkpoint store."""

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from dsv3.checkpoint.collective import Solo
from dsv3.checkpoint.manifest import Identity
from dsv3.checkpoint.random_state import (
    capture_random_state,
    restore_random_state,
    seed_streams,
)
from dsv3.checkpoint.reader import Checkpoint
from dsv3.checkpoint.saver import Saved, Saver
from dsv3.checkpoint.store import CheckpointStore, Search
from dsv3.config.root import RunConfig
from dsv3.engine.collective import RankCollective
from dsv3.engine.engine import TrainingEngine
from dsv3.errors import CapacityError, CheckpointError, Dsv3Error, NumericHealthError, Problem
from dsv3.runs.directory import RunDirectory
from dsv3.runs.identity import identity_digest
from dsv3.runs.records import read_lines
from dsv3.train.health import never_saved
from dsv3.train.position import Position
from dsv3.train.ranks import Ranks

if TYPE_CHECKING:
    from dsv3.train.reporter import Reports


START_ANYWAY = "checkpoint.resume=auto starts the run where there is nothing"


class Resumed(NamedTuple):
    """Where a run goes on: `state` is what `Checkpoints.save` was given, None at the start."""

    position: Position
    state: dict[str, Any] | None
    skipped: list[str]


class Checkpoints:
    """The checkpoints of one run; every rank has one of these, and all ranks call it together."""

    def __init__(
        self,
        run: RunDirectory,
        config: RunConfig,
        *,
        device: torch.device,
        ranks: Ranks,
        attempt: int,
    ) -> None:
        self._run = run
        self._attempt = attempt
        self._config = config
        self._device = device
        self._ranks = ranks
        self._store = CheckpointStore(
            run.checkpoints,
            Identity(run_id=run.id, config_sha256=identity_digest(config)),
            # The thread that saves exchanges small reports while training exchanges tensors.
            collective=RankCollective.apart() if ranks.size > 1 else Solo(),
        )
        self._saver = Saver(self._store, keep=config.checkpoint.keep)
        self._newest: str | None = None
        self._saved_step: int | None = None
        self._stall_s = 0.0

    def newest(self) -> str | None:
        """The newest good checkpoint; one that is being written is waited for: not in passing."""
        outcome = self._saver.outcome()
        return str(outcome.path) if isinstance(outcome, Saved) else self._newest

    @property
    def writing(self) -> bool:
        """Whether this rank still writes; `collect` once no rank does."""
        return self._saver.writing

    def take_stall(self) -> float:
        """Seconds that training has stood still for saving since the last call."""
        stall_s, self._stall_s = self._stall_s, 0.0
        return stall_s

    def resume(self, engine: TrainingEngine) -> Resumed:
        """Load the newest good checkpoint; where to go on, and what was passed over and why.

        Raises CheckpointError if `checkpoint.resume` or the run's history does not allow what was
        found: a run that has saved steps never starts afresh by accident.
        """
        self._store.clean()
        search = self._store.find_newest()
        skipped = [f"{path.name}: {reason}" for path, reason in search.skipped]
        self._refuse(search)
        if search.checkpoint is None:
            return Resumed(Position(), None, skipped)
        return self._go_on(search.checkpoint, engine, skipped)

    def save(
        self,
        engine: TrainingEngine,
        position: Position,
        state: dict[str, Any],
        reporter: "Reports",
        *,
        wait: bool = False,
    ) -> None:
        """Begin to write a checkpoint, unless this position is saved already; keep the newest few.

        `state` is JSON: what the run needs to go on beside tensors, random streams and `position`.
        Returns as soon as everything is copied, after the save before this one is over; with `wait`
        once it is on the disk. What `collect` would raise for either is raised here.
        """
        with self._stalling():
            if self._saver.step != position.step:
                self.collect(reporter)
                self._begin(engine, position, state, reporter)
            if wait:
                self.collect(reporter, failure_ends_run=True)

    def collect(self, reporter: "Reports", *, failure_ends_run: bool = False) -> None:
        """Take what the save under way has come to, if there is one (all ranks at the same step).

        A storage that fails costs this checkpoint and nothing else, unless `failure_ends_run`: then
        CapacityError is raised. Raises NumericHealthError if the state was not finite.
        """
        step = self._saver.step
        if step is None:
            return
        with self._stalling():
            try:
                saved = self._saver.finish()
            except CapacityError as error:
                problems = list(map(str, error.problems))
                reporter.event("checkpoint_failed", step=step, problems=problems)
                if failure_ends_run:
                    raise
                reporter.note(f"training goes on without a checkpoint: {'; '.join(problems)}")
                return
            except NumericHealthError as error:
                raise never_saved(error, step, self._newest) from error
        self._newest, self._saved_step = str(saved.path), step
        reporter.event(
            "checkpoint", step=step, path=saved.path.name, seconds=round(saved.seconds, 3)
        )
        if saved.not_removed is not None:
            reporter.event("checkpoints_not_removed", step=step, problem=saved.not_removed)

    def close(self, reporter: "Reports") -> None:
        """Let a save under way come to its end; for a run that ends otherwise."""
        with contextlib.suppress(Dsv3Error, TimeoutError):
            self._saver.outcome(self._config.run.storage_timeout)
            self.collect(reporter)

    def _begin(
        self,
        engine: TrainingEngine,
        position: Position,
        state: dict[str, Any],
        reporter: "Reports",
    ) -> None:
        if self._saved_step == position.step:
            return

        def before_publish() -> None:
            self._run.refuse_stale()
            reporter.sync()

        self._saver.begin(
            engine.fragments(),
            step=position.step,
            optimizer_step=engine.optimizer_step,
            attempt=self._attempt,
            layout=self._config.parallelism.model_dump(mode="json"),
            state=state | {"position": position.state()},
            rank_state={"random": capture_random_state(self._device)},
            before_publish=before_publish,
        )

    @contextlib.contextmanager
    def _stalling(self) -> Iterator[None]:
        """Count the time in the `with` block, once where such blocks are nested."""
        began_s, before_s = time.monotonic(), self._stall_s
        try:
            yield
        finally:
            self._stall_s = before_s + time.monotonic() - began_s

    def _load(self, checkpoint: Checkpoint, engine: TrainingEngine) -> None:
        optimizer_step = checkpoint.root.optimizer_step
        self._store.require(checkpoint, engine.expected_tensors(optimizer_step))
        engine.prepare_load(optimizer_step)
        self._store.load(checkpoint, engine.fragments())
        engine.finish_load()
        rank = self._ranks.rank
        rank_state = checkpoint.rank_state(rank)
        if rank_state is not None:
            restore_random_state(rank_state["random"], self._device)
        else:  # of a larger layout than the one that saved: no other rank's streams
            seed_streams(self._config.seed, rank, step=checkpoint.step, device=self._device)

    def _refuse(self, search: Search) -> None:
        resume, found = self._config.checkpoint.resume, search.checkpoint is not None
        afresh = "run.tag=<name> starts a run of its own"
        skipped = tuple(Problem(str(path), reason) for path, reason in search.skipped)
        if resume == "must" and not found:
            nothing = f"{self._run.checkpoints} holds no checkpoint to go on from"
            raise CheckpointError(
                [Problem("checkpoint.resume=must", nothing, START_ANYWAY), *skipped]
            )
        if resume == "never" and (found or self._has_saved()):
            rule = f"{self._run.path} has steps already"
            raise CheckpointError(Problem("checkpoint.resume=never", rule, afresh))
        if not found and (skipped or self._has_saved()):
            rule = "the run has saved steps, but none of its checkpoints is good"
            raise CheckpointError(
                [Problem(str(self._run.checkpoints), rule, f"restore one, or {afresh}"), *skipped]
            )

    def _has_saved(self) -> bool:
        return any(line["event"] == "checkpoint" for line in read_lines(self._run.events_path))

    def roll_back(self, engine: TrainingEngine) -> Resumed:
        """Load the newest checkpoint that is good to the last byte, as it is on the disk now.

        For when no save is under way. Raises CheckpointError if there is none.
        """
        assert self._saver.step is None, "a save is under way"
        self._store.forget()
        search = self._store.find_newest()
        skipped = [Problem(str(path), reason) for path, reason in search.skipped]
        if search.checkpoint is None:
            nothing = Problem(str(self._run.checkpoints), "holds no checkpoint to go back to")
            raise CheckpointError([nothing, *skipped])
        return self._go_on(search.checkpoint, engine, list(map(str, skipped)))

    def _go_on(self, checkpoint: Checkpoint, engine: TrainingEngine, skipped: list[str]) -> Resumed:
        self._load(checkpoint, engine)
        self._newest, self._saved_step = str(checkpoint.path), checkpoint.step
        position = Position.from_state(checkpoint.state["position"])
        return Resumed(position, checkpoint.state, skipped)
