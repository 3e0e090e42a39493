"""Runs side by side compute the bits they compute alone; ranks are real."""

import json

import pytest

from dsv3 import cli
from dsv3.runs.directory import RunDirectory
from dsv3.runs.records import read_lines
from faults.small_run import overrides, tensors, write_text

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

STEPS = 12


def test_side_by_side_gives_the_same_bits_as_one_after_the_other(tmp_path, capsys):
    text = write_text(tmp_path / "text.jsonl")
    sweep = [*overrides(text, steps=STEPS), "seed=1,2", "run.digests=true", "balance=aux_free"]
    found = {}
    for parallel in (1, 2):
        roots = [f"run_root={tmp_path}/runs-{parallel}", f"sweep_root={tmp_path}/sweeps-{parallel}"]
        flags = [f"launcher.parallel={parallel}", "-m", "--json"]
        assert cli.run(["train", *sweep, *roots, *flags]) == 0, capsys.readouterr().err
        runs = json.loads(capsys.readouterr().out)["runs"]
        assert all(run["trained"] and run["status"] == "done" for run in runs)
        found[parallel] = [RunDirectory(tmp_path / f"runs-{parallel}" / run["id"]) for run in runs]
    for alone, beside in zip(found[1], found[2], strict=True):
        assert alone.id == beside.id
        lines = alone.digests_path.read_text()
        assert lines.count("\n") == STEPS + 1
        assert beside.digests_path.read_text() == lines
        last = f"checkpoints/step-{STEPS}"
        assert tensors(beside.path / last) == tensors(alone.path / last)
        threads = {a["threads_per_rank"] for run in (alone, beside) for a in run.attempts()}
        assert threads == {1}
    first, second = (run.attempts()[0]["collected_at"] for run in found[2])
    ends = [next(reversed(list(read_lines(run.events_path))))["time"] for run in found[2]]
    assert max(first, second) < min(ends), "they ran at the same time"
