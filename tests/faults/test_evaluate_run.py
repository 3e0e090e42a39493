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
import torch
from safetensors import safe_open

from dsv3 import cli
from dsv3.config.compose import compose
from dsv3.errors import CheckpointError
from dsv3.runs.directory import RunDirectory
from dsv3.runs.lock import RunLock
from dsv3.train import evaluation_attempt, evaluator
from dsv3.train.build import build_model, choose_device
from dsv3.train.weights import find_checkpoint, load_weights
from faults.small_run import metrics, overrides, tensors, write_text
from patience import HANG_S

STEPS = 40


def dsv3(*words, cwd, **options):
    return subprocess.run(
        [sys.executable, "-m", "dsv3", *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=HANG_S,
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
        ema__decay=0.9,
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


@pytest.fixture
def ending(trained, monkeypatch, capfd):
    """Run `dsv3 eval` in this process, expecting an exit code; gives what was said on stderr."""
    monkeypatch.chdir(trained[0])

    def refused(*words, code):
        assert cli.run(["eval", *map(str, words)]) == code
        said = capfd.readouterr()
        assert "Traceback" not in said.err + said.out
        return said.err

    return refused


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


def test_what_people_see(trained, monkeypatch, capfd):
    home, run, _ = trained
    monkeypatch.chdir(home)
    assert cli.run(["eval", f"runs/{run.name}"]) == 0
    said = capfd.readouterr()
    for text in ("validation loss", "MaxVio global", "domain", "dead experts", "expert_load"):
        assert text in said.out
    assert "batch 1/" in said.err


def test_another_set_or_other_arithmetic_lies_beside_the_runs_own(copy, ending):
    _, run = copy
    own = files(run / "evaluations/step-40")
    with RunLock(run / "lock"):  # as if it were training
        ending(run, "evaluation.sequences=4", code=0)
    ending(run, "launcher.threads_per_rank=2", code=0)
    assert files(run / "evaluations/step-40") == own
    apart = {path.name for path in (run / "evaluations").iterdir()} - {"step-20", "step-40"}
    assert apart == {"step-40-sequences-4", "step-40-threads-2"}
    record = json.loads((run / "evaluations/step-40-sequences-4/evaluation.json").read_text())
    assert record["evaluated"]["sequences"] == 4
    assert sum(domain["sequences"] for domain in record["domains"].values()) == 4


def test_the_average_is_evaluated_beside_the_trained_weights(copy, ending):
    """It is the parameters' alone, and its files cannot be taken for those of training."""
    _, path = copy
    own = files(path / "evaluations")
    ending(path, "--ema", code=0)
    assert {name: own[name] for name in own} == {
        name: content
        for name, content in files(path / "evaluations").items()
        if not name.startswith("step-40-ema/")
    }
    records = [
        json.loads((path / f"evaluations/{name}/evaluation.json").read_text())
        for name in ("step-40", "step-40-ema")
    ]
    assert [record["weights"] for record in records] == ["trained", "ema"]
    assert records[0]["loss"] != records[1]["loss"]
    run = RunDirectory(path)
    config = run.config()
    checkpoint, _ = find_checkpoint(run, config, 40)
    models = {}
    for ema in (False, True):
        models[ema] = build_model(config, choose_device(config))
        load_weights(checkpoint, models[ema], config, ema=ema)
    saved = tensors(path / "checkpoints/step-40")
    for name, parameter in models[True].named_parameters():
        assert parameter.detach().numpy().tobytes() == saved[f"rank-00000.safetensors/ema/{name}"]
    for name, buffer in models[True].named_buffers():
        assert torch.equal(buffer, dict(models[False].named_buffers())[name])


def test_a_run_without_an_average_has_none_to_evaluate(copy, ending):
    _, path = copy
    frozen = path / "config.yaml"
    frozen.write_text(frozen.read_text().replace("decay: 0.9", "decay: null"))
    for other in (path / "configs").glob("*.yaml"):
        other.write_text(frozen.read_text())
    said = ending(path, "--ema", code=2)
    assert "was trained with ema.decay=null and has no average" in said
    assert "train a run with ema=on" in said


def test_no_such_run_names_those_that_are_near(trained, ending):
    _, run, _ = trained
    assert f"did you mean {run.name}?" in ending(run.name[:-1], code=2)
    assert f"runs there: {run.name}" in ending("nothing", code=2)
    assert "there are none" in ending("nothing", "run_root=elsewhere", code=2)


def test_only_the_evaluation_can_be_changed(trained, ending):
    _, run, _ = trained
    said = ending(run, "balance=none", "schedule.lr=1", "evaluation.every_steps=3", code=2)
    assert "balance=none: a run is evaluated as it is" in said
    assert "schedule.lr=1: a run is evaluated as it is" in said
    assert "evaluation.every_steps=3: says when training evaluates" in said


def test_a_step_that_is_not_there_lists_those_that_are(trained):
    home, run, _ = trained
    done = dsv3("eval", run, "--step", 30, "--json", cwd=home)
    assert done.returncode == 4
    assert "checkpoints: 20, 40; name one" in done.stderr
    assert json.loads(done.stdout)["error"]["exit_code"] == 4


def test_a_damaged_checkpoint_is_passed_over_or_refused(copy, ending):
    _, path = copy
    newest = path / "checkpoints/step-40/rank-00000.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"x")
    said = ending(path, code=0)
    assert "passed over a checkpoint" in said
    assert "evaluating" in said
    assert "step-20" in said
    run = RunDirectory(path)
    config = run.config()
    with pytest.raises(CheckpointError, match=r"step-40.*damaged.*another with --step"):
        find_checkpoint(run, config, 40)
    shutil.rmtree(path / "checkpoints/step-20")
    with pytest.raises(CheckpointError, match="damaged"):
        find_checkpoint(run, config, None)
    shutil.rmtree(path / "checkpoints")
    with pytest.raises(CheckpointError, match="the checkpoints are gone"):
        find_checkpoint(run, config, None)
    (path / "DONE").unlink()
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        find_checkpoint(run, config, None)


def test_other_data_are_refused(trained, ending):
    home, run, _ = trained
    text = home / "text.jsonl"
    original = text.read_text()
    try:
        write_text(text, seed=1)
        assert "the run began with data" in ending(run, code=6)
    finally:
        text.write_text(original)


def test_a_stop_signal_ends_it_without_a_trace(copy, monkeypatch):
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
    _, path = copy
    run = RunDirectory(path)
    config = run.config()
    checkpoint, skipped = find_checkpoint(run, config, None)
    assert skipped == []
    model = build_model(config, choose_device(config))
    shutil.rmtree(checkpoint.path)
    with pytest.raises(CheckpointError, match=r"was removed while it was read.*evaluate again"):
        load_weights(checkpoint, model, config)


def test_weights_are_those_of_the_checkpoint(trained):
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
