"""`dsv3 eval` on a run of a few steps: the bits of training, and every way it cannot be done."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from dsv3.config.compose import compose
from dsv3.errors import CheckpointError
from dsv3.runs.directory import RunDirectory
from faults.small_run import metrics, overrides, tensors, write_text

STEPS = 40


def dsv3(*words, cwd, **options):
    return subprocess.run(
        [sys.executable, "-m", "dsv3", *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def files(directory):
    """Every file below a directory, with its bytes."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def untouched(run):
    """What an evaluation must leave alone: all but its own directory, log and configuration."""
    own = ("evaluations/", "logs/evaluation.log", "configs/")
    return {name: content for name, content in files(run).items() if not name.startswith(own)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run with MTP, evaluated at its checkpoints; its home, and what it wrote."""
    home = tmp_path_factory.mktemp("evaluated")
    words = overrides(
        write_text(home / "text.jsonl"),
        steps=STEPS,
        mtp="depth1",
        evaluation__every_steps=20,
        run_root="runs",
    )
    done = dsv3("train", *words, cwd=home)
    assert done.returncode == 0, done.stderr
    (run,) = (home / "runs").glob("moe_nano-*")
    return home, run, files(run / "evaluations")


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the run to break; the data are where they were."""
    home, run, _ = trained
    shutil.copytree(run, tmp_path / "runs" / run.name)
    return home, tmp_path / "runs" / run.name


def refusal(*words, cwd, code):
    done = dsv3("eval", *words, cwd=cwd)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    return done.stderr


def test_training_writes_figures_and_the_array(trained):
    _, run, written = trained
    assert sorted(written) == [
        f"step-{step}/{name}"
        for step in (20, 40)
        for name in ("evaluation.json", "expert_load.safetensors")
    ]
    lines = {line["step"]: line for line in metrics(run) if line.get("kind") == "eval"}
    for step in (20, 40):
        record = json.loads(written[f"step-{step}/evaluation.json"])
        line = lines[step]
        assert record["loss"] == line["loss"]
        assert record["max_violation_global"] == line["max_violation_global"]
        assert list(line["max_violation_global_per_layer"]) == ["1"]
        assert len(line["mtp_acceptance"]) == 1
        with safe_open(run / f"evaluations/step-{step}/expert_load.safetensors", "np") as file:
            names = json.loads(file.metadata()["names"])
            counts = file.get_tensor("tokens_per_expert")
            relative = file.get_tensor("relative_load")
        assert names == {"domains": ["a", "b"], "layers": ["model.layers.1.mlp"]}
        assert counts.dtype == np.int64
        assert counts.shape == relative.shape == (2, 1, 8)
        top_k = RunDirectory(run).config().model.num_experts_per_tok
        assert counts.sum() == record["evaluated_tokens"] * top_k
        assert np.array_equal(relative, counts / counts.mean(2, keepdims=True))
        over_set = counts.sum(0)[0]
        assert line["max_violation_global"] == pytest.approx(over_set.max() / over_set.mean() - 1)


@pytest.mark.parametrize("words", [["--step", "20"], []], ids=["step-20", "newest"])
def test_from_a_checkpoint_it_is_the_evaluation_of_training_to_the_bit(trained, words):
    home, run, written = trained
    step = 20 if words else STEPS
    shutil.rmtree(run / f"evaluations/step-{step}")
    before = untouched(run)
    done = dsv3("eval", run.name, *words, "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    assert files(run / "evaluations") == written
    assert untouched(run) == before
    printed = json.loads(done.stdout)
    assert printed["evaluation"] == json.loads(written[f"step-{step}/evaluation.json"])
    assert all(Path(path).is_file() for path in printed["files"].values())


def test_what_people_see(trained):
    home, run, _ = trained
    done = dsv3("eval", f"runs/{run.name}", cwd=home)
    assert done.returncode == 0, done.stderr
    for text in ("validation loss", "MaxVio global", "domain", "dead experts", "expert_load"):
        assert text in done.stdout
    assert "batch 1/" in done.stderr


def test_another_set_or_other_arithmetic_lies_beside_the_runs_own(copy):
    home, run = copy
    own = files(run / "evaluations/step-40")
    assert dsv3("eval", run, "evaluation.sequences=4", cwd=home).returncode == 0
    assert dsv3("eval", run, "launcher.threads_per_rank=2", cwd=home).returncode == 0
    assert files(run / "evaluations/step-40") == own
    apart = {path.name for path in (run / "evaluations").iterdir()} - {"step-20", "step-40"}
    assert apart == {"step-40-sequences-4", "step-40-threads-2"}
    record = json.loads((run / "evaluations/step-40-sequences-4/evaluation.json").read_text())
    assert record["evaluated"]["sequences"] == 4
    assert sum(domain["sequences"] for domain in record["domains"].values()) == 4


def test_no_such_run_names_those_that_are_near(trained):
    home, run, _ = trained
    assert f"did you mean {run.name}?" in refusal(run.name[:-1], cwd=home, code=2)
    assert f"runs there: {run.name}" in refusal("nothing", cwd=home, code=2)
    assert "there are none" in refusal("nothing", "run_root=elsewhere", cwd=home, code=2)


def test_only_the_evaluation_can_be_changed(trained):
    home, run, _ = trained
    said = refusal(
        run, "balance=none", "schedule.lr=1", "evaluation.every_steps=3", cwd=home, code=2
    )
    assert "balance=none: a run is evaluated as it is" in said
    assert "schedule.lr=1: a run is evaluated as it is" in said
    assert "evaluation.every_steps=3: says when training evaluates" in said


def test_a_step_that_is_not_there_lists_those_that_are(trained):
    home, run, _ = trained
    assert "checkpoints: 20, 40; name one" in refusal(run, "--step", 30, cwd=home, code=4)
    as_json = json.loads(dsv3("eval", run, "--step", 30, "--json", cwd=home).stdout)
    assert as_json["error"]["exit_code"] == 4


def test_no_checkpoint_and_damaged_ones(copy):
    home, run = copy
    newest = run / "checkpoints/step-40/rank-00000.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"x")
    assert "damaged" in refusal(run, "--step", 40, cwd=home, code=4)
    done = dsv3("eval", run, cwd=home)
    assert done.returncode == 0
    assert "passed over a checkpoint" in done.stderr
    assert "after            step 20" in done.stdout
    shutil.rmtree(run / "checkpoints/step-20")
    assert "damaged" in refusal(run, cwd=home, code=4)
    shutil.rmtree(run / "checkpoints")
    assert "the checkpoints are gone" in refusal(run, cwd=home, code=4)
    (run / "DONE").unlink()
    assert "has no checkpoint yet" in refusal(run, cwd=home, code=4)


def test_other_data_are_refused(copy):
    home, run = copy
    text = home / "text.jsonl"
    original = text.read_text()
    try:
        write_text(text, seed=1)
        assert "the run began with data" in refusal(run, cwd=home, code=6)
    finally:
        text.write_text(original)


def test_a_stop_signal_ends_it_without_a_trace(copy, monkeypatch):
    from dsv3.train import evaluation_attempt, evaluator

    home, run = copy
    before = files(run / "evaluations")
    monkeypatch.chdir(home)
    monkeypatch.setattr(evaluator, "log_to_file", lambda *_: None)  # it takes over all of logging
    build = evaluation_attempt.build_model

    def stopped(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return build(*arguments)

    monkeypatch.setattr(evaluation_attempt, "build_model", stopped)
    report = run / "report.json"
    argv = [str(run), "--config", "config.yaml", "--report", str(report), "--quiet"]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        assert evaluator.main(argv) == 85
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert json.loads(report.read_text())["error"]["id"] == "saved"
    assert files(run / "evaluations") == before


def test_a_checkpoint_that_goes_while_it_is_read(copy):
    from dsv3.train.build import build_model, choose_device
    from dsv3.train.weights import find_checkpoint, load_weights

    _, path = copy
    run = RunDirectory(path)
    config = run.config()
    checkpoint, skipped = find_checkpoint(run, config, None)
    assert skipped == []
    model = build_model(config, choose_device(config))
    shutil.rmtree(checkpoint.path)
    with pytest.raises(CheckpointError, match="was removed while it was read.*evaluate again"):
        load_weights(checkpoint, model, config)


def test_weights_are_those_of_the_checkpoint(trained):
    import torch

    from dsv3.train.build import build_model
    from dsv3.train.weights import find_checkpoint, load_weights

    _, path, _ = trained
    run = RunDirectory(path)
    config = run.config()
    rounded = config.model_copy(update={"precision": compose(["precision=bf16"]).config.precision})
    checkpoint, _ = find_checkpoint(run, config, 40)
    model = build_model(rounded, torch.device("cpu"))
    load_weights(checkpoint, model, config)
    stored = {key.partition("/")[2]: value for key, value in tensors(checkpoint.path).items()}
    for name, parameter in model.named_parameters():
        master = torch.frombuffer(bytearray(stored[f"master/{name}"]), dtype=torch.float32)
        assert torch.equal(parameter.detach().flatten(), master.bfloat16()), name
    biases = {name: b for name, b in model.named_buffers() if name.endswith("correction_bias")}
    assert len(biases) == 2
    for name, bias in biases.items():
        assert bias.dtype == torch.float32
        assert bias.numpy().tobytes() == stored[f"buffer/{name}"]
        assert bias.any()
