"""`dsv3 train` on a run whose checkpoints are damaged: each is named, none is used, none is lost.

The rank runs in this process. Damage of every byte of a checkpoint is tried in tests/unit.
"""

import itertools
import json
import shutil
from pathlib import Path

import pytest

from dsv3 import cli
from faults.small_run import metrics, overrides, tensors

STEPS, EVERY = 9, 3
SAVED = ["step-9", "step-6", "step-3"]


pytestmark = pytest.mark.usefixtures("ranks_here")


def words(text: Path, root: Path, **values) -> list[str]:
    values = {"checkpoint__every_steps": EVERY, "checkpoint__keep": 3, **values}
    return ["train", *overrides(text, steps=STEPS, run_root=root, **values)]


def trained(text: Path, root: Path, **values) -> Path:
    assert cli.run(words(text, root, **values)) == 0
    return next(root.iterdir())


@pytest.fixture(scope="module")
def whole(text, ranks_here, tmp_path_factory) -> Path:
    return trained(text, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def foreign(text, ranks_here, tmp_path_factory) -> Path:
    """Another run's directory, of the same model."""
    return trained(text, tmp_path_factory.mktemp("foreign"), seed=2)


@pytest.fixture
def unfinished(whole, tmp_path) -> Path:
    """A copy of the run that has not ended yet."""
    run = shutil.copytree(whole, tmp_path / "runs" / whole.name)
    (run / "DONE").unlink()
    return run


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def cut(checkpoint: Path, _foreign: Path) -> None:
    path = checkpoint / "state.json"
    path.write_bytes(path.read_bytes()[:-1])


def flip(checkpoint: Path, _foreign: Path) -> None:
    path = checkpoint / "rank-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)


def of_another_run(checkpoint: Path, foreign: Path) -> None:
    shutil.rmtree(checkpoint)
    shutil.copytree(foreign / "checkpoints" / checkpoint.name, checkpoint)


def tensors_of_another_run(checkpoint: Path, foreign: Path) -> None:
    shutil.copy(foreign / "checkpoints" / checkpoint.name / "rank-00000.safetensors", checkpoint)


def of_another_step(checkpoint: Path, _foreign: Path) -> None:
    other = SAVED[(SAVED.index(checkpoint.name) + 1) % len(SAVED)]
    for name in ("rank-00000.json", "rank-00000.safetensors"):
        shutil.copy(checkpoint.parent / other / name, checkpoint)


def half_written(checkpoint: Path, _foreign: Path) -> None:
    (checkpoint / "manifest.json.sha256").unlink()


DAMAGE = {
    cut: "state.json: damaged",
    flip: "rank-00000.safetensors: damaged",
    of_another_run: "belongs to run",
    tensors_of_another_run: "rank-00000.safetensors: damaged",
    of_another_step: "rank-00000.json: damaged",
    half_written: "manifest.json.sha256",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_must_names_every_refused_checkpoint(damage, unfinished, foreign, text, capsys):
    for name in SAVED:
        damage(unfinished / "checkpoints" / name, foreign)
    # Whatever a pointer says, there is nothing behind it that could be used.
    (unfinished / "checkpoints" / "latest").write_text("step-9")
    before = contents(unfinished / "checkpoints")
    code = cli.run(words(text, unfinished.parent, checkpoint__resume="must"))
    said = capsys.readouterr().err
    assert code == 4
    assert "checkpoint.resume=must: " in said
    for name in SAVED:
        [line] = [line for line in said.splitlines() if f"/checkpoints/{name}: " in line]
        assert DAMAGE[damage] in line
    assert contents(unfinished / "checkpoints") == before
    assert metrics(unfinished)[-1]["step"] == STEPS


@pytest.mark.parametrize(
    ("damage", "pointer"),
    [*zip(DAMAGE, itertools.cycle(["step-9", "", "step-7", None]), strict=False)],
)
def test_the_good_one_before_is_used_whatever_a_pointer_says(
    damage, pointer, unfinished, foreign, whole, text, capsys
):
    damage(unfinished / "checkpoints" / "step-9", foreign)
    if pointer is not None:
        (unfinished / "checkpoints" / "latest").write_text(pointer)
    code = cli.run(words(text, unfinished.parent, checkpoint__resume="must"))
    said = capsys.readouterr().err
    assert code == 0, said
    [line] = [line for line in said.splitlines() if "passed over a checkpoint: step-9: " in line]
    assert DAMAGE[damage] in line
    assert f"going on from {unfinished}/checkpoints/step-6\n" in said
    events = [json.loads(line) for line in (unfinished / "events.jsonl").read_text().splitlines()]
    [*_, last] = [event for event in events if event["event"] == "started"]
    assert (last["step"], len(last["skipped_checkpoints"])) == (6, 1)
    assert metrics(unfinished) == metrics(whole)
    last_checkpoint = "checkpoints/step-9"
    assert tensors(unfinished / last_checkpoint) == tensors(whole / last_checkpoint)
