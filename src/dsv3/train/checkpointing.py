"""When a run saves and where it goes on: the engine's fragments meet the checkpoint store."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from dsv3.checkpoint.manifest import Identity
from dsv3.checkpoint.random_state import capture_random_state, restore_random_state
from dsv3.checkpoint.reader import Checkpoint
from dsv3.checkpoint.store import CheckpointStore, Search
from dsv3.config.root import RunConfig
from dsv3.engine.engine import TrainingEngine
from dsv3.errors import CheckpointError, Problem
from dsv3.runs.directory import RunDirectory
from dsv3.runs.identity import identity_digest
from dsv3.runs.records import read_lines
from dsv3.train.health import refuse_non_finite
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
        self, run: RunDirectory, config: RunConfig, *, device: torch.device, ranks: Ranks
    ) -> None:
        self._run = run
        self._config = config
        self._device = device
        self._ranks = ranks
        self._store = CheckpointStore(
            run.checkpoints,
            Identity(run_id=run.id, config_sha256=identity_digest(config)),
            collective=ranks,
        )
        self.newest: str | None = None
        self._saved_step: int | None = None

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
        checkpoint = search.checkpoint
        self._load(checkpoint, engine)
        self.newest, self._saved_step = str(checkpoint.path), checkpoint.step
        position = Position.from_state(checkpoint.state["position"])
        return Resumed(position, checkpoint.state, skipped)

    def save(
        self,
        engine: TrainingEngine,
        position: Position,
        state: dict[str, Any],
        reporter: "Reports",
    ) -> None:
        """Write a checkpoint, unless this position is saved already; keep the newest few.

        `state` is JSON: what the run needs to go on beside tensors, random streams and `position`.

        Raises NumericHealthError if a weight or moment is not finite, CapacityError if the storage
        fails.
        """
        if self._saved_step == position.step:
            return
        refuse_non_finite(engine.fragments(), position, self.newest, self._ranks)
        reporter.sync()
        path = self._store.save(
            engine.fragments(),
            step=position.step,
            optimizer_step=engine.optimizer_step,
            attempt=len(self._run.attempts()),
            layout=self._config.parallelism.model_dump(mode="json"),
            state=state | {"position": position.state()},
            rank_state={"random": capture_random_state(self._device)},
        )
        self.newest, self._saved_step = str(path), position.step
        reporter.event("checkpoint", step=position.step, path=path.name)
        self._store.retain(self._config.checkpoint.keep)

    def _load(self, checkpoint: Checkpoint, engine: TrainingEngine) -> None:
        optimizer_step = checkpoint.root.optimizer_step
        self._store.require(checkpoint, engine.expected_tensors(optimizer_step))
        # Of this rank where the layout had it; nothing in training draws random numbers.
        rank_state = checkpoint.rank_state(self._ranks.rank) or checkpoint.rank_state(0)
        assert rank_state is not None, "a checkpoint has at least one part"
        engine.prepare_load(optimizer_step)
        self._store.load(checkpoint, engine.fragments())
        engine.finish_load()
        restore_random_state(rank_state["random"], self._device)

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

        Raises CheckpointError if there is none.
        """
        identity = Identity(run_id=self._run.id, config_sha256=identity_digest(self._config))
        # A store of its own: what this process wrote is hashed again before it is trusted.
        search = CheckpointStore(
            self._run.checkpoints, identity, collective=self._ranks
        ).find_newest()
        skipped = [Problem(str(path), reason) for path, reason in search.skipped]
        if search.checkpoint is None:
            nothing = Problem(str(self._run.checkpoints), "holds no checkpoint to go back to")
            raise CheckpointError([nothing, *skipped])
        self._load(search.checkpoint, engine)
        self.newest, self._saved_step = str(search.checkpoint.path), search.checkpoint.step
        state = search.checkpoint.state
        return Resumed(Position.from_state(state["position"]), state, list(map(str, skipped)))
