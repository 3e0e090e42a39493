"""Failing storage, crashes between two renames, retention: older checkpoints are never at risk."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from dsv3.checkpoint import durable
from dsv3.checkpoint.manifest import Identity
from dsv3.checkpoint.reader import Checkpoint
from dsv3.checkpoint.store import CheckpointStore
from dsv3.errors import CapacityError, CheckpointError

CALLS_OF_A_SAVE = 30  # more than there are; the loops below assert that they ran out


def steps(directory: Path, identity: Identity) -> list[int]:
    store = CheckpointStore(directory, identity)
    good = [found for found in store.scan() if isinstance(found, Checkpoint)]
    return [checkpoint.step for checkpoint in good]


def fail_at(monkeypatch, function: str, call: int, error: int) -> list[int]:
    """Make the call-th os.<function> raise; the list counts the calls."""
    real, calls = getattr(os, function), []

    def faulty(*arguments, **keywords):
        calls.append(1)
        if len(calls) == call:
            raise OSError(error, os.strerror(error))
        return real(*arguments, **keywords)

    monkeypatch.setattr(os, function, faulty)
    return calls


@pytest.mark.parametrize(
    ("function", "error"),
    [("fsync", errno.EIO), ("fsync", errno.ENOSPC), ("rename", errno.EIO)],
)
@pytest.mark.parametrize("step", [20, 10])  # a new one, and one that replaces a good one
def test_a_failing_call_costs_only_the_new_checkpoint(
    tmp_path, save, identity, monkeypatch, function, error, step
):
    save(tmp_path, 5)
    save(tmp_path, 10)
    failures = 0
    for call in range(1, CALLS_OF_A_SAVE):
        with monkeypatch.context() as patch:
            calls = fail_at(patch, function, call, error)
            refused = None
            try:
                save(tmp_path, step)
            except CapacityError as raised:
                refused = str(raised)
        if refused is None:
            break
        assert os.strerror(error).lower() in refused.lower()
        assert len(calls) >= call, "the fault fired"
        failures += 1
        assert {5, 10} <= set(steps(tmp_path, identity))
        assert CheckpointStore(tmp_path, identity).find_newest().skipped == ()
        shutil.rmtree(tmp_path / "step-20", ignore_errors=True)
    else:
        pytest.fail("the save has more calls than were tried")
    assert failures > 0
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_read_only_file_system_is_named(tmp_path, save, monkeypatch):
    save(tmp_path, 5)
    fail_at(monkeypatch, "mkdir", 2, errno.EROFS)  # the first is for the directory that is there
    with pytest.raises(CapacityError, match="step-10: was not saved: read-only file system"):
        save(tmp_path, 10)


def test_a_full_disk_in_the_middle_of_a_file(tmp_path, save, identity, monkeypatch):
    save(tmp_path, 5)
    real = durable.write_file

    def full(path, chunks):
        def cut():
            for chunk in chunks:
                yield chunk
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return real(path, cut())

    monkeypatch.setattr("dsv3.checkpoint.writer.write_file", full)
    with pytest.raises(CapacityError, match="no space left"):
        save(tmp_path, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["step-5"]


def test_a_replacement_changes_the_content_and_leaves_nothing(tmp_path, save, identity):
    save(tmp_path, 10, attempt=1)
    save(tmp_path, 10, attempt=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-10"]
    found = CheckpointStore(tmp_path, identity).find_newest().checkpoint
    assert found is not None
    assert found.root.attempt == 2


def test_cleaning_removes_leftovers_and_undoes_a_broken_replacement(tmp_path, save, identity):
    tag = "0" * 32
    save(tmp_path, 10).rename(tmp_path / f".step-10.{tag}.replaced")  # crash between the renames
    save(tmp_path, 10).rename(tmp_path / f".step-10.{tag}.writing")
    save(tmp_path, 20)
    shutil.copytree(tmp_path / "step-20", tmp_path / f".step-20.{tag}.replaced")
    (tmp_path / f".step-30.{tag}.removing").mkdir()
    (tmp_path / ".step-30.of-the-user").mkdir()
    removed = CheckpointStore(tmp_path, identity).clean()
    assert len(removed) == 4
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"step-10", "step-20", ".step-30.of-the-user"}
    assert steps(tmp_path, identity) == [20, 10]


def test_retention_counts_only_good_ones(tmp_path, save, identity):
    for step in (1, 2, 3, 4, 5, 6):
        save(tmp_path, step)
    for step in (0, 7):
        save(tmp_path, step, identity=Identity(run_id="another", config_sha256="a" * 64))
    for step in (2, 5):
        tensors = tmp_path / f"step-{step}" / "rank-00000.safetensors"
        content = bytearray(tensors.read_bytes())
        content[-1] ^= 1
        tensors.write_bytes(content)
    removed = CheckpointStore(tmp_path, identity).retain(2)
    assert [path.name for path in removed] == ["step-3", "step-2", "step-1"]
    assert steps(tmp_path, identity) == [6, 5, 4]  # 5 opens; only its content is damaged
    assert (tmp_path / "step-7").exists()
    assert (tmp_path / "step-0").exists()
    assert CheckpointStore(tmp_path, identity).retain(2) == []


def test_retention_removes_nothing_while_too_few_are_good(tmp_path, save, identity):
    for step in (1, 2, 3):
        save(tmp_path, step)
    for step in (1, 3):
        (tmp_path / f"step-{step}" / "state.json").unlink()
    assert CheckpointStore(tmp_path, identity).retain(2) == []
    with pytest.raises(AssertionError):
        CheckpointStore(tmp_path, identity).retain(1)


def test_a_crash_while_removing_leaves_nothing_that_looks_good(
    tmp_path, save, identity, monkeypatch
):
    for step in (1, 2, 3):
        save(tmp_path, step)
    monkeypatch.setattr(shutil, "rmtree", lambda *_a, **_k: None)  # killed before the first file
    CheckpointStore(tmp_path, identity).retain(2)
    assert steps(tmp_path, identity) == [3, 2]
    monkeypatch.undo()
    CheckpointStore(tmp_path, identity).clean()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2", "step-3"]


@pytest.mark.parametrize(
    "state",
    [{"a": (1, 2)}, {"a": {1: 2}}, {"a": float("nan")}, {"a": object()}, {"a": {"b": (1,)}}],
)
def test_state_that_json_would_change_is_refused(tmp_path, save, identity, state):
    with pytest.raises(CheckpointError, match="JSON"):
        CheckpointStore(tmp_path, identity).save(
            [], step=1, optimizer_step=1, attempt=1, layout={}, state=state, rank_state={}
        )
    assert list(tmp_path.iterdir()) == []
