"""Two ranks' checkpoints cut, flipped, mixed, half there: the good one before is used."""

import os
import random
import shutil

import pytest

from dsv3.checkpoint.manifest import Identity, TensorRecord
from dsv3.checkpoint.store import CheckpointStore
from dsv3.checkpoint.writer import Entry, Header, write_checkpoint

# In the order in which they are written: of both ranks, then those of the whole.
PARTS = [f"rank-0000{rank}.{kind}" for rank in (0, 1) for kind in ("safetensors", "json")]
FILES = [*PARTS, "state.json", "manifest.json", "manifest.json.sha256"]
FLIPS = 1000
OLD, NEW = 10, 20


def entries(rank: int, size: int, value: int) -> list[Entry]:
    """This rank's slice of three tensors, all elements of one value."""
    cut, left = divmod(480, size)
    length = cut + (left if rank == size - 1 else 0)
    record = TensorRecord(shape=(480,), dtype="F32", offset=rank * cut, length=length)
    content = value.to_bytes(4, "little") * length
    return [Entry(f"master/layer.{n}.weight", record, [content]) for n in range(3)]


@pytest.fixture
def save(tmp_path, ranks, identity):
    """Save a checkpoint of several ranks; every value in it is told by the arguments."""

    def saved(where="checkpoints", *, step=NEW, attempt=1, size=2, of=identity, value=None):
        def body(collective):
            number = step if value is None else value
            return write_checkpoint(
                tmp_path / where,
                Header(of, step, step, attempt, {"expert_parallel_size": size}),
                entries(collective.rank, size, number + collective.rank),
                state={"cursor": number},
                rank_state={"random": [number, collective.rank]},
                collective=collective,
            )

        return ranks(size, body)[0]

    return saved


@pytest.fixture
def store(tmp_path, save, identity):
    """A store with two good checkpoints."""
    save(step=OLD)
    assert sorted(path.name for path in save(step=NEW).iterdir()) == sorted(FILES)
    store = CheckpointStore(tmp_path / "checkpoints", identity)
    assert found(store) == (NEW, [])
    return CheckpointStore(tmp_path / "checkpoints", identity)  # which has verified nothing yet


def found(store):
    """The step of the newest good one, and what is said of those passed over."""
    checkpoint, skipped = store.find_newest()
    return checkpoint and checkpoint.step, [f"{path.name}: {reason}" for path, reason in skipped]


def refused(store) -> str:
    """What is said of the newest, which must be passed over for the one before."""
    step, [said] = found(store)
    assert step == OLD
    assert said.startswith(f"step-{NEW}: ")
    return said


@pytest.mark.parametrize("name", FILES)
def test_cut_at_every_tenth(store, name):
    path = store.directory / f"step-{NEW}" / name
    content = path.read_bytes()
    lengths = [len(content) * tenth // 10 for tenth in range(10)]
    assert len(set(lengths)) == 10
    for length in [*lengths, len(content) - 1]:
        path.write_bytes(content[:length])
        assert name in refused(store), length
    path.write_bytes(content)
    assert found(store) == (NEW, [])


def test_every_one_of_a_thousand_flipped_bits(store, record_property):
    generator, detected, hit = random.Random(12), 0, set()
    for _ in range(FLIPS):
        path = store.directory / f"step-{NEW}" / generator.choice(FILES)
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        detected += path.name.partition(".sha256")[0] in refused(store)
        hit.add(path.name)
        path.write_bytes(content)
    record_property("flipped_bits_detected", f"{detected} of {FLIPS}")
    print(f"{detected} of {FLIPS} flipped bits detected")
    assert (detected, hit) == (FLIPS, set(FILES))
    assert found(store) == (NEW, [])


# Which files come from elsewhere. Not all of them: that would be another good checkpoint.
MIXES = {
    "tensors of rank 0": PARTS[:1],
    "manifest of rank 1": PARTS[3:4],
    "part of rank 0": PARTS[:2],
    "part of rank 1": PARTS[2:4],
    "both parts": PARTS,
    "state": FILES[4:5],
    "root without its seal": FILES[5:6],
    "root": FILES[5:],
    "all but one part": [*PARTS[2:], *FILES[4:]],
    "all but the state": [*PARTS, *FILES[5:]],
}
SOURCES = {
    "another step": {"step": 30},
    "another attempt at the step": {"attempt": 2, "value": 7},
    "another run": {"of": Identity(run_id="another", config_sha256="a" * 64), "value": 7},
    "another configuration": {
        "of": Identity(run_id="moe-nano-0123", config_sha256="b" * 64),
        "value": 7,
    },
    "another layout": {"size": 3, "value": 7},
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("mix", MIXES)
def test_files_of_two_checkpoints_do_not_mix(store, save, source, mix):
    other, path = save("elsewhere", **SOURCES[source]), store.directory / f"step-{NEW}"
    for name in MIXES[mix]:
        assert (other / name).read_bytes() != (path / name).read_bytes(), "something is swapped"
        shutil.copy(other / name, path / name)
    refused(store)


@pytest.mark.parametrize("kinds", [["safetensors"], ["json"], ["safetensors", "json"]])
def test_files_of_two_ranks_are_not_swapped(store, kinds):
    path = store.directory / f"step-{NEW}"
    for kind in kinds:
        one, other = (path / f"rank-0000{rank}.{kind}" for rank in (0, 1))
        one.rename(path / "aside")
        other.rename(one)
        (path / "aside").rename(other)
    assert "rank-0000" in refused(store)


@pytest.mark.parametrize("source", ["another run", "another configuration"])
def test_a_whole_checkpoint_from_elsewhere_is_not_taken(store, save, source):
    shutil.rmtree(store.directory / f"step-{NEW}")
    shutil.copytree(save("elsewhere", **SOURCES[source]), store.directory / f"step-{NEW}")
    assert ("belongs to run" if source == "another run" else "configuration") in refused(store)


def test_a_whole_checkpoint_under_another_step_is_not_taken(store, save):
    shutil.rmtree(store.directory / f"step-{NEW}")
    shutil.copytree(save("elsewhere", step=30), store.directory / f"step-{NEW}")
    assert "is step 30" in refused(store)


@pytest.mark.parametrize("files", range(len(FILES)))
def test_half_written_under_its_final_name(store, files):
    """As a copy leaves it that broke off; a save never does."""
    path = store.directory / f"step-{NEW}"
    for name in FILES[files:]:
        (path / name).unlink()
    refused(store)


POINTERS = ["latest", "latest_checkpointed_iteration.txt", "checkpoint"]
CONTENTS = [b"", b"step-10", b"step-999", b"global_step", b"step-2", b"\0\xff" * 50, b"x" * 10**6]


@pytest.mark.parametrize("name", POINTERS)
def test_a_pointer_of_any_content_changes_nothing(store, name):
    pointer = store.directory / name
    for content in CONTENTS:
        pointer.write_bytes(content)
        assert found(store) == (NEW, [])
    for make in (
        lambda: pointer.symlink_to("step-10"),
        lambda: pointer.symlink_to("nowhere"),
        lambda: os.mkfifo(pointer),
    ):
        pointer.unlink()
        make()
        assert found(store) == (NEW, [])
    pointer.unlink()
    pointer.mkdir()
    assert found(store) == (NEW, [])


@pytest.mark.parametrize("content", [b"step-20", b""])
def test_a_pointer_to_a_damaged_one_does_not_keep_the_good_one_from_being_found(store, content):
    (store.directory / "latest").write_bytes(content)
    (store.directory / f"step-{NEW}" / "manifest.json.sha256").unlink()
    refused(store)
