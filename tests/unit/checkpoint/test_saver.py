"""Saving beside the training: what is written is what was there when the save began."""

import subprocess
import sys
import threading

import pytest
import torch

from dsv3.checkpoint.manifest import Identity
from dsv3.checkpoint.saver import Saved, Saver
from dsv3.checkpoint.snapshot import Copied, Snapshot
from dsv3.checkpoint.store import CheckpointStore
from dsv3.errors import CapacityError, NumericHealthError
from patience import HANG_S


def fragment(key: str, data: torch.Tensor, *, saved_here: bool = True) -> Copied:
    return Copied(key, (data.numel(),), 0, data, saved_here)


def begin(saver: Saver, fragments: list[Copied], step: int, **changes: object) -> None:
    arguments = {"optimizer_step": step, "attempt": 1, "layout": {}, "state": {"step": step}}
    arguments |= {"rank_state": {}, "before_publish": lambda: None} | changes
    saver.begin(fragments, step=step, **arguments)


def loaded(store: CheckpointStore, key: str) -> tuple[int, torch.Tensor]:
    found = store.find_newest().checkpoint
    assert found is not None
    target = torch.zeros(found.specs()[key].shape)
    store.load(found, [fragment(key, target)])
    return found.step, target


@pytest.fixture
def store(tmp_path, identity: Identity) -> CheckpointStore:
    return CheckpointStore(tmp_path, identity)


def test_a_save_holds_what_was_there_when_it_began(store):
    weights, gate = torch.arange(1000.0), threading.Event()
    saver = Saver(store, keep=2)
    begin(saver, [fragment("master/a", weights)], 1, before_publish=lambda: gate.wait(HANG_S))
    weights += 1  # training goes on
    assert saver.writing
    assert not (store.directory / "step-1").exists()
    gate.set()
    saved = saver.finish()
    assert (saved.path, saved.not_removed) == (store.directory / "step-1", None)
    step, found = loaded(store, "master/a")
    assert step == 1
    assert torch.equal(found, torch.arange(1000.0))


def test_memory_is_used_again_and_never_shared_with_the_model():
    snapshot = Snapshot()
    weights, other = torch.zeros(100), torch.zeros(7, dtype=torch.bfloat16)
    fragments = [
        fragment("a", weights),
        fragment("b", other),
        fragment("c", other, saved_here=False),
    ]
    first = snapshot.take(fragments)
    assert [copy.key for copy in first] == ["a", "b"]
    second = snapshot.take(fragments)
    places = [copy.data.data_ptr() for copy in second]
    assert places == [copy.data.data_ptr() for copy in first]
    assert weights.data_ptr() not in places
    grown = snapshot.take([fragment("a", torch.ones(200))])
    assert torch.equal(grown[0].data, torch.ones(200))
    assert len(snapshot._memory) == 1, "what is not saved any more is let go"


def test_a_second_save_waits_for_the_first(store):
    gate, saver = threading.Event(), Saver(store, keep=2)
    begin(saver, [fragment("a", torch.ones(3))], 1, before_publish=lambda: gate.wait(HANG_S))
    with pytest.raises(AssertionError, match="step 1 is not finished"):
        begin(saver, [fragment("a", torch.ones(3))], 2)
    with pytest.raises(TimeoutError):
        saver.outcome(0.01)
    gate.set()
    outcome = saver.outcome()
    assert isinstance(outcome, Saved)
    assert saver.step == 1, "looked at, not taken"
    saver.finish()
    assert (saver.step, saver.outcome(), saver.writing) == (None, None, False)


def test_a_failure_is_raised_where_the_save_is_taken(store):
    def full() -> None:
        raise OSError(28, "No space left on device")

    saver = Saver(store, keep=2)
    begin(saver, [fragment("a", torch.ones(3))], 1, before_publish=full)
    assert isinstance(saver.outcome(), CapacityError)
    with pytest.raises(CapacityError, match="step-1: was not saved: no space left"):
        saver.finish()
    assert list(store.directory.iterdir()) == []
    begin(saver, [fragment("a", torch.ones(3))], 2)  # the next one is as good as ever
    assert saver.finish().path.name == "step-2"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("place", [0, 500, 999])
def test_what_is_not_finite_is_never_saved(store, value, dtype, place):
    data = torch.linspace(-3, 3, 1000).to(dtype)
    saver = Saver(store, keep=2)
    begin(saver, [fragment("exp_avg/a", data)], 1)
    saver.finish()
    data[place] = value
    begin(saver, [fragment("exp_avg/a", data)], 2)
    with pytest.raises(NumericHealthError, match="exp_avg/a is not finite"):
        saver.finish()
    assert [path.name for path in store.directory.iterdir()] == ["step-1"]


def test_the_largest_finite_numbers_are_saved(store):
    saver = Saver(store, keep=2)
    for step, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16), start=1):
        largest = torch.finfo(dtype).max
        begin(saver, [fragment("a", torch.tensor([largest, -largest, 0], dtype=dtype))], step)
        assert saver.finish().path.name == f"step-{step}"


def test_older_ones_that_cannot_go_cost_nothing(store, monkeypatch):
    saver = Saver(store, keep=2)

    def refuse(_path):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("dsv3.checkpoint.durable.remove", refuse)
    for step in (1, 2, 3):
        begin(saver, [fragment("a", torch.ones(3))], step)
        saved = saver.finish()
    assert saved.path.name == "step-3"
    assert saved.not_removed is not None
    assert "step-1: cannot be removed: operation not permitted" in saved.not_removed


def test_one_rank_that_fails_fails_all_of_them(tmp_path, identity, ranks):
    def body(collective):
        store = CheckpointStore(tmp_path, identity, collective=collective)
        saver = Saver(store, keep=2)
        whole = torch.arange(10.0)
        data = whole[collective.rank * 5 : collective.rank * 5 + 5].clone()
        piece = Copied("a", (10,), collective.rank * 5, data)
        begin(saver, [piece], 1)
        saver.finish()
        if collective.rank == 1:
            data[2] = float("nan")
        begin(saver, [piece], 2)
        return saver.outcome()

    for outcome in ranks(2, body):
        assert isinstance(outcome, NumericHealthError)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_a_process_that_ends_is_not_held_by_its_saver(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from dsv3.checkpoint.manifest import Identity\n"
        "from dsv3.checkpoint.saver import Saver\n"
        "from dsv3.checkpoint.store import CheckpointStore\n"
        "store = CheckpointStore(Path(sys.argv[1]), Identity(run_id='r', config_sha256='a' * 64))\n"
        "Saver(store, keep=2).begin([], step=1, optimizer_step=1, attempt=1, layout={}, state={},"
        " rank_state={}, before_publish=lambda: time.sleep(3600))\n"
        "sys.exit(7)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=HANG_S)
    assert ended.returncode == 7
