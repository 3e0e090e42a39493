"""The resume is exact, and forgetting any one item of the saved state would be seen."""

import json
import math
import shutil
import signal
from pathlib import Path

import pytest

from dsv3.config.compose import compose
from dsv3.config.root import RunConfig
from dsv3.data.prepare import prepare, unseen
from dsv3.engine.health import NonFiniteError
from dsv3.errors import SavedForRequeueError
from dsv3.runs.directory import RunDirectory
from dsv3.runs.lock import RunLock
from dsv3.runs.provenance import collect
from dsv3.runs.rank import RankArguments
from dsv3.train import loop
from dsv3.train.attempt import train_attempt
from dsv3.train.checkpointing import Checkpoints
from dsv3.train.heartbeat import Heartbeat
from faults.resume_mutants import MUTANTS, Fresh, Mutant
from faults.small_run import metrics, overrides, tensors, write_text

STEPS, SAVED = 14, 7
ARMS = {
    "aux_free": ["balance=aux_free", "mtp=depth1", "ema=on"],
    "aux_batch": ["balance=aux_batch", "balance.batch_counts=previous_step"],
    "rollback": ["health.on_non_finite=rollback", "checkpoint.every_steps=6"],
    "skip": ["health.on_non_finite=skip"],
    "fp8": ["precision=fp8_block_emulated", "recompute=full", "health.largest_fp8_underflow=0"],
}
# The steps that are not finite in these arms. One goes back from 9 to 6 and makes step 7 again, so
# that what is saved there knows of a step to leave out that is still to come. It is bad only once:
# a fault that is there again would teach a forgetful run the same.
BAD_STEPS = {"rollback": (9,), "skip": (7, 8)}
CALLS = {"rollback": 9}  # looks at the stop request before the save; elsewhere one a step
# Alarms are on at the step that is saved, the first of a window: the next does not end it.
ALARMED = {
    "health__window_steps": 3,
    "health__lowest_load_entropy": 1.0,
    "health__largest_bias_spread": 1e-6,
}


class Stop:
    """Asks to save and stop once `step` steps are done; None: never."""

    def __init__(self, step: int | None) -> None:
        self.steps_left = step

    @property
    def number(self) -> int:
        if self.steps_left is None:
            return 0
        self.steps_left -= 1
        return signal.SIGTERM if self.steps_left < 0 else 0


def train(directory: Path, *, until: int | None = None) -> list[dict]:
    """Train a run in this process, built from scratch, from its checkpoint on; its digests."""
    run = RunDirectory(directory)
    arguments = RankArguments(directory, "config.yaml", quiet=True)
    with RunLock(run.lock_path) as lock:
        train_attempt(run, arguments, Stop(until), lock, Heartbeat(None, 0, 0.0))
    return digests(directory)


def digests(directory: Path) -> list[dict]:
    path = directory / "digests.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def bad_steps():
    """One step is not finite where a policy lives on."""
    real = loop._before_update

    def faulty(trainer, step, result):
        bad = step in BAD_STEPS.get(trainer.config.health.on_non_finite, ())
        if bad and "rolled_back" not in trainer.run.events_path.read_text():
            raise NonFiniteError("gradient norm", math.nan, (), ranks=(), losses=result.losses)
        real(trainer, step, result)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_before_update", faulty)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory, bad_steps):
    """By arm: digests of the uninterrupted run, and the directory of one that was stopped."""
    home = tmp_path_factory.mktemp("mutants")
    text = write_text(home / "text.jsonl")
    found = {}
    for name, words in ARMS.items():
        small = overrides(text, steps=STEPS, run__digests="true", **ALARMED)
        config = compose([*small, *words, f"run_root={home / name}"]).config
        stopped = create(config)
        whole = Path(shutil.copytree(stopped, home / f"{name}-whole" / stopped.name))
        with pytest.raises(SavedForRequeueError):
            train(stopped, until=CALLS.get(name, SAVED))
        found[name] = train(whole), stopped, whole
        assert len(found[name][0]) == STEPS + 1
        assert digests(stopped) == found[name][0][:SAVED]
    return found


def create(config: RunConfig) -> Path:
    data = prepare(config.data, vocab_size=config.model.vocab_size, progress=unseen)
    provenance = collect(config, argv=(), data_fingerprint=data.fingerprint, threads_per_rank=1)
    return RunDirectory.create_or_open(config, overrides=(), provenance=provenance).path


def resumed(runs, arm: str, home: Path) -> tuple[list[dict], list[dict]]:
    """Digests of the uninterrupted run and of one that goes on from the middle."""
    whole, stopped, _ = runs[arm]
    return whole, train(Path(shutil.copytree(stopped, home / stopped.name)))


def differing(left: list[dict], right: list[dict]) -> set[str]:
    """Names of the digests in which the first line that differs differs; none: equal."""
    for one, other in zip(left, right, strict=False):
        if one != other:
            return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    return {"length"} if len(left) != len(right) else set()


@pytest.mark.parametrize("arm", ARMS)
def test_a_resume_is_exact(runs, tmp_path, arm):
    whole, went_on = resumed(runs, arm, tmp_path)
    assert differing(whole, went_on) == set()


def test_a_run_killed_after_its_last_step_says_what_follows_once(runs, tmp_path):
    digests_of_whole, _, whole = runs["aux_free"]
    again = Path(shutil.copytree(whole, tmp_path / whole.name))
    (again / "DONE").unlink()  # written after everything else
    assert train(again) == digests_of_whole
    assert metrics(again) == metrics(whole)


def test_digests_change_nothing_that_is_computed(runs, tmp_path):
    _, _, whole = runs["aux_free"]
    with_digests = RunDirectory(whole).config()
    section = with_digests.run.model_copy(update={"digests": False})
    without = with_digests.model_copy(update={"run": section, "run_root": str(tmp_path)})
    assert train(create(without)) == []
    run = tmp_path / whole.name  # of the same name, which is of what is computed
    assert metrics(run) == metrics(whole)
    last = f"checkpoints/step-{STEPS}"
    assert tensors(run / last) == tensors(whole / last)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.item)
def test_what_a_resume_forgets_is_seen(runs, tmp_path, monkeypatch, mutant: Mutant):
    resume = Checkpoints.resume

    def forgetful(self, engine):
        fresh = Fresh.of(engine)
        found = resume(self, engine)
        assert found.position.step == SAVED
        return mutant.forget(fresh, engine, found)

    monkeypatch.setattr(Checkpoints, "resume", forgetful)
    whole, went_on = resumed(runs, mutant.arm, tmp_path)
    seen = differing(whole, went_on)
    print(f"{mutant.item}: {', '.join(sorted(seen))}")
    assert mutant.shown_by in seen


def test_every_part_of_the_trainers_state_has_a_mutant(runs):
    """A part that is added to the checkpoint needs a line in the table."""
    parts = set(runs["aux_free"][0][-1]["state"])
    forgotten = {mutant.state for mutant in MUTANTS if mutant.state is not None}
    assert parts == forgotten
    assert len(MUTANTS) >= 12
