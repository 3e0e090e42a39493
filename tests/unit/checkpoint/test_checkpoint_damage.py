"""Every kind of damage is found, named, and answered with the newest checkpoint that is good."""

import json
import os
import random
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from dsv3.checkpoint.collective import Solo
from dsv3.checkpoint.manifest import Identity, seal_of
from dsv3.checkpoint.reader import open_checkpoint
from dsv3.checkpoint.store import CheckpointStore
from dsv3.errors import CheckpointError

NAMES = [
    "manifest.json",
    "manifest.json.sha256",
    "rank-00000.json",
    "rank-00000.safetensors",
    "state.json",
]


def verify(path: Path, identity: Identity) -> None:
    checkpoint = open_checkpoint(path, identity)
    checkpoint.verify(Solo())
    assert checkpoint.state
    assert checkpoint.rank_state(0) is not None


def reseal(path: Path) -> None:
    """Make every hash right again after an edit: what only the contents can give away."""
    root = json.loads((path / "manifest.json").read_bytes())
    part = json.loads((path / "rank-00000.json").read_bytes())
    for name, record in (("rank-00000.safetensors", part["file"]), ("state.json", root["state"])):
        record["bytes"] = (path / name).stat().st_size
        record["sha256"] = sha256((path / name).read_bytes()).hexdigest()
    content = json.dumps(part).encode()
    (path / "rank-00000.json").write_bytes(content)
    root["parts"] = [{"bytes": len(content), "sha256": sha256(content).hexdigest()}]
    write_root(path, root)


def write_root(path: Path, root: object) -> None:
    content = json.dumps(root).encode()
    (path / "manifest.json").write_bytes(content)
    (path / "manifest.json.sha256").write_bytes(seal_of(content))


def test_the_files_are_the_documented_ones(tmp_path, save, identity):
    path = save(tmp_path, 10)
    assert sorted(file.name for file in path.iterdir()) == NAMES
    verify(path, identity)
    reseal(path)  # so that the tests that reseal change nothing but what they say
    verify(path, identity)


@pytest.mark.parametrize("name", NAMES)
def test_truncation_at_every_tenth_is_found(tmp_path, save, identity, name):
    path = save(tmp_path, 10)
    content = (path / name).read_bytes()
    for tenth in range(10):
        (path / name).write_bytes(content[: len(content) * tenth // 10])
        with pytest.raises(CheckpointError):
            verify(path, identity)
    (path / name).write_bytes(content + b"\0")
    with pytest.raises(CheckpointError):
        verify(path, identity)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_compared_before_anything_large_is_read(tmp_path, save, identity, name):
    path = save(tmp_path, 10)
    (path / name).write_bytes((path / name).read_bytes()[:-1])
    [skipped] = CheckpointStore(tmp_path, identity).scan()
    assert name in skipped.reason


@pytest.mark.parametrize("name", NAMES)
def test_every_flipped_bit_is_found(tmp_path, save, identity, name):
    path = save(tmp_path, 10)
    content = (path / name).read_bytes()
    generator = random.Random(name)
    for _ in range(200):
        flipped = bytearray(content)
        flipped[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        (path / name).write_bytes(flipped)
        with pytest.raises(CheckpointError):
            verify(path, identity)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_or_a_link_in_its_place_is_found(tmp_path, save, identity, name):
    path = save(tmp_path, 10)
    (path / name).rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=name):
        verify(path, identity)
    (path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=name):
        verify(path, identity)
    (path / name).unlink()
    os.mkfifo(path / name)  # opening one would wait for ever
    with pytest.raises(CheckpointError, match=name):
        verify(path, identity)


@pytest.mark.parametrize(
    "names", [[n] for n in NAMES] + [["rank-00000.json", "rank-00000.safetensors"], NAMES[:2]]
)
def test_parts_of_two_steps_do_not_mix(tmp_path, save, identity, names):
    path, other = save(tmp_path, 10), save(tmp_path, 20)
    for name in names:
        shutil.copy(other / name, path / name)
    with pytest.raises(CheckpointError):
        verify(path, identity)


def test_a_part_of_another_step_is_refused_even_when_its_hash_is_right(tmp_path, save, identity):
    path, other = save(tmp_path, 10), save(tmp_path, 20)
    for name in ("rank-00000.json", "rank-00000.safetensors"):
        shutil.copy(other / name, path / name)
    reseal(path)
    with pytest.raises(CheckpointError, match="step, attempt, rank"):
        verify(path, identity)


def test_a_renamed_step_and_a_foreign_run_are_refused(tmp_path, save, identity):
    path = save(tmp_path, 10)
    path.rename(tmp_path / "step-30")
    with pytest.raises(CheckpointError, match="is step 10"):
        open_checkpoint(tmp_path / "step-30", identity)
    foreign = Identity(run_id="another", config_sha256="a" * 64)
    with pytest.raises(CheckpointError, match="belongs to run another"):
        open_checkpoint(save(tmp_path, 10, identity=foreign), identity)
    other_config = Identity(run_id=identity.run_id, config_sha256="b" * 64)
    with pytest.raises(CheckpointError, match="another configuration"):
        open_checkpoint(save(tmp_path, 10, identity=other_config), identity)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "newer"),
        ({"format_version": 0}, "malformed"),
        ({"format_version": "1"}, "malformed"),
        ({"parts": []}, "malformed"),
        ({"step": -1}, "malformed"),
        ({"step": 10.5}, "malformed"),
        ({"unknown": 1}, "malformed"),
        ({"identity": None}, "malformed"),
    ],
)
def test_manifest_values(tmp_path, save, identity, changes, message):
    path = save(tmp_path, 10)
    write_root(path, json.loads((path / "manifest.json").read_bytes()) | changes)
    with pytest.raises(CheckpointError, match=message):
        verify(path, identity)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"[" * 100_000, b"\xff\xfe"])
def test_a_manifest_that_is_no_object_is_named(tmp_path, save, identity, content):
    path = save(tmp_path, 10)
    (path / "manifest.json").write_bytes(content)
    (path / "manifest.json.sha256").write_bytes(seal_of(content))
    with pytest.raises(CheckpointError, match="malformed"):
        verify(path, identity)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 501}, "outside"),
        ({"offset": 1}, "outside"),
        ({"offset": -1}, "malformed"),
        ({"length": 499}, "ends at element 499"),
        ({"offset": 1, "length": 499}, "missing at 0"),
        ({"dtype": "OBJECT"}, "malformed"),
        ({"file": "../../etc/passwd"}, "malformed"),
        ({"shape": [2**62, 2**62]}, "ends at element"),
    ],
)
def test_wrong_bounds_and_names_are_refused(tmp_path, save, identity, changes, message):
    path = save(tmp_path, 10)
    part = json.loads((path / "rank-00000.json").read_bytes())
    part["tensors"]["master/layer.1.weight"] |= changes
    (path / "rank-00000.json").write_bytes(json.dumps(part).encode())
    reseal(path)
    with pytest.raises(CheckpointError, match=message):
        verify(path, identity)


def payload(canary: Path) -> bytes:
    """A pickle that calls os.mkdir(canary) when it is loaded."""
    return b"cos\nmkdir\n(V" + str(canary).encode() + b"\ntR."


def test_the_payload_works(tmp_path):
    (tmp_path / "data.pkl").write_bytes(payload(tmp_path / "canary"))
    subprocess.run([sys.executable, "-m", "pickle", tmp_path / "data.pkl"], check=True)
    assert (tmp_path / "canary").is_dir()


@pytest.mark.parametrize("name", [*NAMES, "optimizer.pt", "data.pkl"])
def test_a_pickle_is_never_loaded(tmp_path, save, identity, name):
    path, canary = save(tmp_path, 10), tmp_path / "canary"
    (path / name).write_bytes(payload(canary))
    if name in NAMES:
        with pytest.raises(CheckpointError):
            verify(path, identity)
    else:
        verify(path, identity)
    assert not canary.exists()


def test_the_newest_good_one_is_found_and_the_bad_ones_are_named(tmp_path, save, identity):
    for step in (5, 10, 20, 30):
        save(tmp_path, step)
    tensors = tmp_path / "step-30" / "rank-00000.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1  # only its content tells
    tensors.write_bytes(content)
    (tmp_path / "step-20" / "manifest.json.sha256").unlink()
    (tmp_path / "step-40").mkdir()
    (tmp_path / "step-007").mkdir()  # not a name of ours
    (tmp_path / "latest").write_text("step-30")
    search = CheckpointStore(tmp_path, identity).find_newest()
    assert search.checkpoint is not None
    assert search.checkpoint.step == 10
    assert search.checkpoint.state == {"cursor": 80, "window": [1.5, None, True]}
    assert [skipped.path.name for skipped in search.skipped] == ["step-40", "step-30", "step-20"]
    assert "incomplete" in search.skipped[0].reason
    assert "hash" in search.skipped[1].reason
    assert "incomplete" in search.skipped[2].reason


def test_nothing_to_find(tmp_path, identity):
    assert CheckpointStore(tmp_path / "absent", identity).find_newest() == (None, ())
