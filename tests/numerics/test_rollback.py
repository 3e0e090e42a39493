"""Spikes and rollbacks in a whole run: found in their step, undone, and exact through a kill.

A fault is a property of a batch here: it is there whenever its step is tried. The oracle is a run
in which those batches were left out by construction.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dsv3.engine.distributed import process_group
from dsv3.errors import NumericHealthError
from dsv3.train import loop
from dsv3.train.checkpointing import Checkpoints
from dsv3.train.loop import Trainer, train_to_end
from dsv3.train.policies import Policies
from dsv3.train.reporter import Reporter
from faults.small_run import CLOCKED
from numerics.poison import differing, everything
from numerics.small_training import GLOBAL_BATCH_SIZE, SEQUENCE_LENGTH, training

STEPS, EVERY, BAD = 18, 5, 12
OVERRIDES = [
    f"schedule.total_tokens={STEPS * SEQUENCE_LENGTH * GLOBAL_BATCH_SIZE}",
    f"checkpoint.every_steps={EVERY}",
    "checkpoint.keep=3",
    "evaluation.every_steps=null",
    "balance=aux_free",
    "ema.decay=0.9",
    "health.spike_window_steps=8",
    "health.window_steps=3",
    "tracking=none",
]
SPIKE = 1e4  # times the gradient


class Killed(Exception):
    """The end of an attempt, at a moment of the test's choice."""


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    torch.set_num_threads(1)
    with process_group(torch.device("cpu")), pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate_now", lambda trainer: None)
        yield


@contextmanager
def attempt(directory: Path, *overrides: str, factors: dict[int, float]) -> Iterator[Trainer]:
    """A trainer in a run directory, where the last one stopped; gradients of a step x a factor."""
    directory.mkdir(exist_ok=True)
    files = {f"{name}_path": directory / f"{name}.jsonl" for name in ("metrics", "events")}
    run = SimpleNamespace(
        id="run",
        path=directory,
        checkpoints=directory / "checkpoints",
        attempts=list,
        refuse_stale=lambda: None,
        **files,
    )
    with training(*OVERRIDES, *overrides) as trainer:
        config = trainer.config
        trainer.checkpoints = Checkpoints(
            run, config, device=trainer.device, ranks=trainer.ranks, attempt=1
        )
        resumed = trainer.checkpoints.resume(trainer.engine)
        if resumed.state is not None:
            trainer.restore(resumed)
            trainer.policies = Policies(config.health, resumed.state["policies"])
        done = trainer.position.step
        trainer.reporter = Reporter(run, config, done_steps=done, quiet=True)
        head = trainer.model.get_parameter("model.norm.weight")

        def spoil(gradient: torch.Tensor) -> torch.Tensor:
            return gradient * factors.get(trainer.position.step + 1, 1.0)

        handle = head.register_hook(spoil)
        try:
            yield trainer
        finally:
            handle.remove()
            trainer.reporter.close()


def lines(directory: Path, name: str = "metrics") -> list[dict]:
    found = map(json.loads, (directory / f"{name}.jsonl").read_text().splitlines())
    return [{k: v for k, v in one.items() if k not in (*CLOCKED, "time")} for one in found]


def events(directory: Path, name: str) -> list[dict]:
    return [line for line in lines(directory, "events") if line["event"] == name]


def whole_run(directory: Path, *overrides: str, factors: dict[int, float]) -> dict:
    with attempt(directory, *overrides, factors=factors) as trainer:
        train_to_end(trainer)
        return everything(trainer)


def raised(kind: type[Exception], trainer: Trainer) -> Any:
    with pytest.raises(kind) as caught:
        train_to_end(trainer)
    return caught.value


@pytest.fixture(scope="module")
def left_out(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Path, dict]]:
    """By step: a run in which that one was left out from the start."""
    known: dict[int, tuple[Path, dict]] = {}

    def without(step: int) -> tuple[Path, dict]:
        if step not in known:
            directory = tmp_path_factory.mktemp("left_out")
            with attempt(directory, factors={}) as trainer:
                trainer.policies.left_out_steps.add(step)
                train_to_end(trainer)
                known[step] = directory, everything(trainer)
        return known[step]

    return without


def test_a_reported_spike_changes_nothing(tmp_path: Path) -> None:
    seen = whole_run(tmp_path / "seen", "health.on_spike=report", factors={BAD: SPIKE})
    blind = whole_run(tmp_path / "blind", "health.spike_deviations=1e6", factors={BAD: SPIKE})
    assert differing(seen, blind) == []
    assert lines(tmp_path / "seen") == lines(tmp_path / "blind")
    [event] = events(tmp_path / "seen", "spike")
    assert (event["step"], event["figure"]) == (BAD, "grad_norm")
    assert event["value"] > event["limit"] > 1
    assert events(tmp_path / "blind", "spike") == []


def test_a_spike_can_stop_the_run_before_its_update(tmp_path: Path) -> None:
    with attempt(tmp_path, "health.on_spike=stop", factors={BAD: SPIKE}) as trainer:
        stopped = raised(NumericHealthError, trainer)
        assert str(stopped).startswith(f"step {BAD}: the grad_norm is ")
        assert trainer.engine.optimizer_step == BAD - 1


@pytest.mark.parametrize(("policy", "factor"), [("on_spike", SPIKE), ("on_non_finite", math.nan)])
@pytest.mark.parametrize(("kind", "event"), [("skip", "step_skipped"), ("rollback", "rolled_back")])
def test_a_bad_batch_is_as_if_it_had_been_left_out(
    tmp_path: Path, left_out: Callable, policy: str, factor: float, kind: str, event: str
) -> None:
    expected_in, expected = left_out(BAD)
    found = whole_run(tmp_path, f"health.{policy}={kind}", factors={BAD: factor})
    assert differing(found, expected) == []
    ours, theirs = lines(tmp_path), lines(expected_in)
    assert ours[BAD - 1]["skipped"] and theirs[BAD - 1]["skipped"]
    # What is known of the step is in the line of a skipped one, and not of one never tried.
    assert (ours[BAD - 1]["loss"] is None) == (kind == "rollback")
    assert ours[: BAD - 1] + ours[BAD:] == theirs[: BAD - 1] + theirs[BAD:]
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    [told] = events(tmp_path, event)
    assert (told["step"], told["figure"]) == (BAD, "grad_norm")
    if kind == "rollback":
        assert told["to_step"] == 10


@pytest.mark.parametrize("step", [1, 3])
def test_before_the_first_checkpoint_there_is_one_of_step_0(
    tmp_path: Path, left_out: Callable, step: int
) -> None:
    found = whole_run(tmp_path, "health.on_non_finite=rollback", factors={step: math.inf})
    assert differing(found, left_out(step)[1]) == []
    assert [told["to_step"] for told in events(tmp_path, "rolled_back")] == [0]
    assert events(tmp_path, "checkpoint")[0]["step"] == 0


@pytest.mark.parametrize("killed_after", [11, 12, 13, 16])
def test_a_kill_around_a_rollback_changes_nothing(
    tmp_path: Path, left_out: Callable, killed_after: int
) -> None:
    overrides, factors = ["health.on_spike=rollback"], {BAD: SPIKE}
    with attempt(tmp_path, *overrides, factors=factors) as trainer:
        report = trainer.reporter.step

        def step(line: dict) -> None:
            report(line)
            late_enough = killed_after < BAD or events(tmp_path, "rolled_back")
            if line["step"] == killed_after and late_enough:
                trainer.checkpoints.newest()  # waits for the one being written: 16 goes on from 15
                raise Killed

        trainer.reporter.step = step
        raised(Killed, trainer)
    found = whole_run(tmp_path, *overrides, factors=factors)
    expected_in, expected = left_out(BAD)
    assert differing(found, expected) == []
    assert lines(tmp_path) == lines(expected_in)
    assert len(events(tmp_path, "rolled_back")) == (1 if killed_after in (11, 16) else 2)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, left_out: Callable) -> None:
    """Written by this very process, and damaged since: it is hashed again before it is trusted."""
    overrides, factors = ["health.on_non_finite=rollback"], {BAD: math.nan}
    with attempt(tmp_path, *overrides, factors=factors) as trainer:
        report = trainer.reporter.step

        def step(line: dict) -> None:
            if line["step"] == 11 and not events(tmp_path, "rolled_back"):
                assert trainer.checkpoints.newest().endswith("step-10")  # and waits for it
                [file] = (tmp_path / "checkpoints" / "step-10").glob("*.safetensors")
                content = bytearray(file.read_bytes())
                content[-5] ^= 1
                file.write_bytes(content)
            report(line)

        trainer.reporter.step = step
        train_to_end(trainer)
        assert differing(everything(trainer), left_out(BAD)[1]) == []
    assert [told["to_step"] for told in events(tmp_path, "rolled_back")] == [5]
    assert lines(tmp_path) == lines(left_out(BAD)[0])


def test_rollbacks_to_the_same_checkpoint_come_to_an_end(tmp_path: Path) -> None:
    factors = dict.fromkeys(range(BAD, STEPS + 1), math.nan)
    overrides = ["health.on_non_finite=rollback", "health.largest_rollbacks=2"]
    with attempt(tmp_path, *overrides, factors=factors) as trainer:
        stopped = raised(NumericHealthError, trainer)
    assert stopped.exit_code == 5
    assert "after health.largest_rollbacks=2 to the same checkpoint" in str(stopped)
    told = events(tmp_path, "rolled_back")
    assert [(one["step"], one["to_step"]) for one in told] == [(BAD, 10), (BAD + 1, 10)]


def test_a_newer_checkpoint_starts_the_count_again(tmp_path: Path) -> None:
    factors = dict.fromkeys([BAD, 14, 16, 17], math.nan)
    whole_run(
        tmp_path, "health.on_non_finite=rollback", "health.largest_rollbacks=2", factors=factors
    )
    told = [(one["step"], one["to_step"]) for one in events(tmp_path, "rolled_back")]
    assert told == [(BAD, 10), (14, 10), (16, 15), (17, 15)]
    assert [n for n, line in enumerate(lines(tmp_path), 1) if "skipped" in line] == [
        BAD,
        14,
        16,
        17,
    ]
