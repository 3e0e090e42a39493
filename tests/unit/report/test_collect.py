"""A study is what the files of the runs say, whatever state they are in."""

import json

import numpy as np
import pytest

from dsv3.report.collect import collect
from unit.report.made_runs import (
    DOMAINS,
    START,
    STEPS,
    make_run,
    provenance,
    record,
    step_lines,
    write_lines,
)

LOSSES = [4.0, 3.5, 3.0, 2.75, 2.5, 2.25]
RESULT = {"loss": 2.5, "bpb": 1.5}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


def only(root, **kwargs):
    (run,) = collect(record(root, {"base": [1]}), **kwargs).runs
    return run


def test_a_finished_run_is_read_whole(root, config):
    load = np.arange(24.0).reshape(3, 2, 4)
    path = make_run(root, "base-1", config, losses=LOSSES, result=RESULT, load=load)
    run = only(root)
    assert (run.id, run.arm, run.seed, run.directory) == ("base-1", "base", 1, path)
    assert (run.status, run.failure, run.problems) == ("done", None, ())
    assert run.done
    assert run.config == config
    assert run.result["loss"] == 2.5
    assert run.start == START
    assert run.provenance == run.attempts[0] == provenance()
    assert [line["loss"] for line in run.evaluations] == [2.5]
    assert run.expert_load.domains == DOMAINS
    assert run.expert_load.layers == ("1", "2")
    assert np.array_equal(run.expert_load.relative_DLE, load)


def test_curves_have_every_figure_that_is_one_number(root, config):
    make_run(root, "base-1", config, losses=LOSSES)
    curves = only(root).curves
    assert curves.keys() == {"loss", "mtp_loss", "lr", "tokens_per_second", "max_violation"}
    assert curves["loss"].values.tolist() == LOSSES
    assert curves["mtp_loss"].values.tolist() == [loss + 1 for loss in LOSSES]
    assert curves["loss"].steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert curves["loss"].tokens.tolist() == [16, 32, 48, 64, 80, 96]


def test_a_figure_that_is_not_known_is_left_out_at_its_step(root, config):
    run = make_run(root, "base-1", config)
    lines = step_lines(LOSSES)
    lines[2]["loss"] = None
    lines[3]["mtp_loss"] = []
    write_lines(run / "metrics.jsonl", lines)
    curves = only(root).curves
    assert curves["loss"].steps.tolist() == [1, 2, 4, 5, 6]
    assert curves["mtp_loss"].steps.tolist() == [1, 2, 3, 5, 6]


def test_a_line_that_is_being_written_is_left_out(root, config):
    run = make_run(root, "base-1", config, losses=LOSSES)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "tokens": 112, "lo')
    found = only(root)
    assert found.curves["loss"].values.tolist() == LOSSES
    assert (found.status, found.result, found.expert_load) == ("stopped", None, None)


def test_the_cost_is_the_time_of_the_steps_that_count(root, config):
    attempts = [provenance(), provenance(threads_per_rank=3, layout={"world_size": 4})]
    make_run(root, "base-1", config, losses=LOSSES, attempts=attempts)
    run = only(root)
    assert run.cost_s == pytest.approx(6 * 0.5)
    assert (run.devices, run.device_kind) == (12, "CPU core")  # as in the last start


def test_gpus_are_counted_by_rank(root, config):
    run = make_run(root, "base-1", config, losses=LOSSES, result=RESULT)
    at = run / "evaluations" / f"step-{STEPS}" / "evaluation.json"
    figures = json.loads(at.read_text())
    at.write_text(json.dumps(figures | {"computed_with": {"device": "cuda"}}))
    write_lines(run / "attempts.jsonl", [provenance(layout={"world_size": 8})])
    found = only(root)
    assert (found.devices, found.device_kind) == (8, "GPU")


def test_a_failure_is_told(root, config):
    failure = {"exit_code": 5, "problems": [{"setting": "loss", "rule": "is NaN"}]}
    make_run(root, "base-1", config, losses=LOSSES, failure=failure)
    run = only(root)
    assert (run.status, run.failure, run.result) == ("failed", failure, None)


def test_a_run_that_is_not_there_is_missing(root, config):
    make_run(root, "base-1", config, losses=LOSSES, result=RESULT)
    here, gone = collect(record(root, {"base": [1, 2]})).runs
    assert here.status == "done"
    assert (gone.status, gone.directory, gone.done) == ("missing", root / "base-2", False)
    assert gone.config is gone.result is gone.cost_s is None


@pytest.mark.parametrize("file", ["metrics.jsonl", "DONE", "provenance.json", "attempts.jsonl"])
def test_a_damaged_run_is_damaged_and_no_more(root, config, file):
    for seed in (1, 2):
        make_run(root, f"base-{seed}", config, losses=LOSSES, result=RESULT)
    (root / "base-1" / file).write_text("{broken\n")
    damaged, sound = collect(record(root, {"base": [1, 2]})).runs
    assert (damaged.status, sound.status) == ("damaged", "done")
    assert file in damaged.problems[0]


@pytest.mark.parametrize(
    ("file", "content", "lost"),
    [
        ("start.json", "{", "start"),
        ("config.yaml", "seed: 1\nunheard_of: 2\n", "config"),
        (f"evaluations/step-{STEPS}/evaluation.json", "{", "expert_load"),
        (f"evaluations/step-{STEPS}/expert_load.safetensors", "other bytes", "expert_load"),
    ],
)
def test_what_is_not_needed_for_the_rest_is_none_and_named(root, config, file, content, lost):
    run = make_run(root, "base-1", config, losses=LOSSES, result=RESULT)
    (run / file).write_text(content)
    found = only(root)
    assert found.status == "done"
    assert getattr(found, lost) is None
    assert len(found.problems) == 1
    assert file.rpartition("/")[2] in found.problems[0]


def test_a_run_without_start_hashes_is_an_older_one(root, config):
    make_run(root, "base-1", config, losses=LOSSES, result=RESULT, start=None)
    found = only(root)
    assert (found.start, found.problems) == (None, ())


@pytest.mark.parametrize("below", ["runs", "runs/mine", "elsewhere/deep/runs"])
def test_runs_that_moved_with_the_record_are_found(tmp_path, config, below):
    make_run(tmp_path / "new" / below, "base-1", config, losses=LOSSES, result=RESULT)
    sweeps = tmp_path / "new" / "sweeps"
    sweeps.mkdir()
    assert only(tmp_path / "old" / below).status == "missing"
    found = only(tmp_path / "old" / below, beside=sweeps)
    assert found.status == "done"
    assert found.directory == tmp_path / "new" / below / "base-1"
