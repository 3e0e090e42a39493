"""A run directory is whole or absent, frozen, and tells its own state."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import dsv3
from dsv3.config.root import RunConfig
from dsv3.errors import (
    CapacityError,
    CheckpointError,
    ConfigError,
    DataError,
    NumericHealthError,
    Problem,
)
from dsv3.runs import directory as directory_module
from dsv3.runs.directory import RunDirectory, Status, check_run_root
from dsv3.runs.identity import run_id
from dsv3.runs.lock import RunLock
from dsv3.runs.provenance import Provenance
from dsv3.runs.records import MetricsLog


def provenance(data: str = "data-1", diff: str = "") -> Provenance:
    record = {
        "data_fingerprint": data,
        "numerics_version": dsv3.NUMERICS_VERSION,
        "versions": {"dsv3": "0.1.0"},
    }
    return Provenance(record, diff)


def create(config: RunConfig, **changes: str) -> RunDirectory:
    Path(config.run_root).mkdir(exist_ok=True)
    overrides = ("model=moe_nano", "seed=1")
    return RunDirectory.create_or_open(
        config, overrides=overrides, provenance=provenance(**changes)
    )


def test_a_new_run_is_complete(config: RunConfig) -> None:
    run = create(config, diff="+ a change\n")
    assert run.path == Path(config.run_root) / run_id(config)
    assert run.id == run_id(config)
    assert run.config() == config
    assert yaml.safe_load(run.overrides_path.read_text()) == ["model=moe_nano", "seed=1"]
    assert run.provenance()["data_fingerprint"] == "data-1"
    assert next(run.path.glob("source-*.diff")).read_text() == "+ a change\n"
    assert run.checkpoints.is_dir() and run.logs.is_dir()
    assert run.status() is Status.NEW
    assert not run.path.stat().st_mode & stat.S_IWOTH
    assert [path.name for path in Path(config.run_root).iterdir()] == [run.id]


def test_the_run_root_is_made_and_found_relative_to_here(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = config.model_copy(update={"run_root": "my runs"})
    run = RunDirectory.create_or_open(here, overrides=(), provenance=provenance())
    assert (tmp_path / "my runs" / run.id / "config.yaml").is_file()


def test_asking_again_opens_it_and_changes_nothing(config: RunConfig) -> None:
    run = create(config)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    again = create(config, diff="+ other code\n")
    assert again.path == run.path
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_of_processes_creating_at_once_all_get_the_same_whole_run(
    config: RunConfig, tmp_path: Path
) -> None:
    code = (
        "import sys\n"
        "from dsv3.config.root import RunConfig\n"
        "from dsv3.runs.directory import RunDirectory\n"
        "from dsv3.runs.provenance import Provenance\n"
        "import dsv3\n"
        "configs = [RunConfig.model_validate_json(text) for text in sys.argv[1:]]\n"
        "record = {'data_fingerprint': 'd', 'numerics_version': dsv3.NUMERICS_VERSION}\n"
        "made = Provenance(record, '')\n"
        "print('ready', flush=True)\n"
        "for config in configs:\n"
        "    sys.stdin.readline()\n"
        "    run = RunDirectory.create_or_open(config, overrides=(), provenance=made)\n"
        "    run.config(); print(run.id, flush=True)\n"
    )
    asked = [config.model_copy(update={"seed": seed}) for seed in (1, 2, 3)]
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, *(one.model_dump_json() for one in asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        )
        for _ in range(6)
    ]
    assert {racer.stdout.readline() for racer in racers} == {"ready\n"}
    for one in asked:
        for racer in racers:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        assert {racer.stdout.readline() for racer in racers} == {f"{run_id(one)}\n"}
    assert [racer.communicate()[0] for racer in racers] == [""] * 6
    names = [path.name for path in Path(config.run_root).iterdir()]
    assert len(names) == 3, "no half-made directory stays behind"
    assert not [name for name in names if name.startswith(".")]


def test_a_failure_while_creating_leaves_nothing(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _chunks: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directory_module, "write_synced", full)
    with pytest.raises(CapacityError, match="no space left on device"):
        create(config)
    assert list(Path(config.run_root).iterdir()) == []


KILLED = """
import os, signal, sys
from dsv3.config.root import RunConfig
from dsv3.runs import directory
from dsv3.runs.provenance import Provenance

def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)

directory.write_json = killed
config = RunConfig.model_validate_json(sys.argv[1])
directory.RunDirectory.create_or_open(config, overrides=(), provenance=Provenance({}, ""))
"""


def half_made_by_a_killed_process(config: RunConfig) -> Path:
    Path(config.run_root).mkdir(exist_ok=True)
    words = [sys.executable, "-c", KILLED, config.model_dump_json()]
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run(words, env=environment, check=False).returncode == -9
    (half_made,) = Path(config.run_root).iterdir()
    assert (half_made / "config.yaml").exists()
    return half_made


def test_what_a_killed_maker_left_goes_with_the_next(config: RunConfig) -> None:
    half_made = half_made_by_a_killed_process(config)
    other = create(config.model_copy(update={"seed": config.seed + 1}))
    assert half_made.exists(), "it is another run's"
    run = create(config)
    assert sorted(Path(config.run_root).iterdir()) == sorted([run.path, other.path])
    assert run.status() is Status.NEW


def test_what_a_living_maker_is_at_stays(config: RunConfig) -> None:
    half_made = half_made_by_a_killed_process(config)
    with RunLock(half_made / "lock"):
        run = create(config)
    assert set(Path(config.run_root).iterdir()) == {run.path, half_made}


@pytest.mark.parametrize("lock", [True, False])
def test_a_maker_without_its_name_in_the_lock_has_a_minute(config: RunConfig, lock: bool) -> None:
    half_made = Path(config.run_root) / f".{run_id(config)}.0"
    half_made.mkdir(parents=True)
    if lock:
        (half_made / "lock").touch()
    run = create(config)
    assert half_made.exists()
    run.path.rename(Path(config.run_root) / "aside")
    os.utime(half_made, (time.time() - 61,) * 2)
    create(config)
    assert not half_made.exists()


def test_other_data_under_the_same_id_is_refused_with_the_remedy(config: RunConfig) -> None:
    run = create(config)
    run.mark_done({"loss": 1.0})
    with pytest.raises(
        DataError, match=r"began with data data-1.*data-2.*run\.tag=<name>"
    ) as raised:
        create(config, data="data-2")
    assert raised.value.exit_code == 6
    tagged = config.model_copy(update={"run": config.run.model_copy(update={"tag": "again"})})
    assert create(tagged, data="data-2").path != run.path


def test_other_numerics_under_the_same_id_are_refused_with_the_remedy(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(config).mark_done({"loss": 1.0})
    monkeypatch.setattr(dsv3, "NUMERICS_VERSION", dsv3.NUMERICS_VERSION + 1)
    with pytest.raises(ConfigError, match=r"numerics version .*\(0\.1\.0\), or run\.tag=<name>"):
        create(config)


def test_another_layout_is_the_same_run_and_has_a_file_of_its_own(config: RunConfig) -> None:
    run = create(config)
    assert run.config_file(config) == "config.yaml"
    schedule = config.schedule.model_copy(update={"micro_batch_size": 2})
    other = config.model_copy(update={"schedule": schedule})
    assert create(other).path == run.path
    name = run.config_file(other)
    assert name == run.config_file(other) != "config.yaml"
    assert run.config(name) == other
    assert run.config() == config, "the first configuration stays as it was"


def test_attempts_are_counted_under_the_lock_and_say_what_differs(config: RunConfig) -> None:
    run = create(config)
    schedule = config.schedule.model_copy(update={"micro_batch_size": 2})
    other = config.model_copy(update={"schedule": schedule})
    lock = RunLock(run.lock_path)
    with pytest.raises(AssertionError):
        run.begin_attempt(lock, config, provenance())
    with lock:
        assert run.begin_attempt(lock, config, provenance()) == 1
    run.mark_failed(NumericHealthError("loss is nan"))
    assert run.status() is Status.FAILED
    with lock:
        assert run.begin_attempt(lock, other, provenance(diff="+ x\n")) == 2
        assert json.loads(run.lock_path.read_text())["attempt"] == 2
    first, second = run.attempts()
    assert (first["attempt"], first["changed"]) == (1, {})
    assert (second["attempt"], second["changed"]) == (2, {"schedule.micro_batch_size": 2})
    assert run.config().schedule.micro_batch_size != 2
    assert run.latest_config().schedule.micro_batch_size == 2
    assert len(list(run.path.glob("source-*.diff"))) == 1
    assert run.failure() is None, "a new attempt forgets the failure"
    with lock, pytest.raises(DataError):
        run.begin_attempt(lock, config, provenance(data="data-2"))
    assert len(run.attempts()) == 2


def test_status_is_read_off_the_files(config: RunConfig) -> None:
    run = create(config)
    with RunLock(run.lock_path):
        assert run.status() is Status.RUNNING
    assert run.status() is Status.NEW
    with MetricsLog(run.metrics_path, last_step=0) as log:
        assert run.status() is Status.NEW
        log.append({"step": 1})
    assert run.status() is Status.STOPPED
    run.metrics_path.unlink()
    (run.checkpoints / "step-5").mkdir()
    assert run.status() is Status.STOPPED
    error = NumericHealthError([Problem("step 7", "loss is nan", "lower schedule.lr")])
    run.mark_failed(error, step=7)
    assert run.status() is Status.FAILED
    failure = run.failure()
    assert (failure["id"], failure["exit_code"], failure["step"]) == ("numeric", 5, 7)
    assert [Problem(**problem) for problem in failure["problems"]] == list(error.problems)
    with RunLock(run.lock_path):
        assert run.status() is Status.RUNNING
    run.mark_done({"loss": 2.5})
    assert run.status() is Status.DONE
    assert run.result()["loss"] == 2.5


def test_a_result_replaces_the_old_one_whole(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create(config)
    run.mark_done({"loss": 2.5})

    def dies(_self: Path, _target: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(CapacityError, match="DONE: input/output error"):
        run.mark_done({"loss": 1.5})
    assert run.result()["loss"] == 2.5
    assert not [path for path in run.path.iterdir() if path.name.startswith(".")]


def test_damaged_files_are_named(config: RunConfig) -> None:
    run = create(config)
    run.config_path.write_text("seed: [")
    with pytest.raises(CheckpointError, match=r"config\.yaml: this file of the run is damaged"):
        create(config)
    run.config_path.write_text("seed: 1\n")
    with pytest.raises(CheckpointError, match=r"config\.yaml"):
        run.config()
    other = config.model_copy(update={"seed": 5})
    run.config_path.write_text(yaml.safe_dump(other.model_dump(mode="json")))
    with pytest.raises(ConfigError, match="computes something else than its name says"):
        create(config)
    run.provenance_path.write_text("[]")
    with pytest.raises(CheckpointError, match=r"provenance\.json: .* not a JSON object"):
        run.provenance()
    run.done_path.write_text("{")
    with pytest.raises(CheckpointError, match="DONE"):
        run.result()


def test_something_else_in_its_place_is_not_touched(config: RunConfig) -> None:
    path = RunDirectory.of(config).path
    path.mkdir(parents=True)
    (path / "thesis.tex").write_text("years of work")
    with pytest.raises(CapacityError, match="something else than a run is there: move it away"):
        create(config)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert (path / "thesis.tex").read_text() == "years of work"


def test_a_tag_of_yaml_python_is_not_run(config: RunConfig, tmp_path: Path) -> None:
    run = create(config)
    run.config_path.write_text(f"!!python/object/apply:os.mkdir ['{tmp_path / 'canary'}']")
    with pytest.raises(CheckpointError):
        run.config()
    assert not (tmp_path / "canary").exists()


def test_a_run_root_that_cannot_be_is_named_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    for root, reason in (
        (tmp_path / "file", "it is not a directory"),
        (tmp_path / "file" / "runs", "not a directory"),
        (tmp_path / "mistyped" / "runs", "its parent .*mistyped is not a directory; mkdir -p"),
        (tmp_path / ("x" * 300), "file name too long"),
        ("a\0b", "null"),
        ("/proc/runs", "run_root=/proc/runs: .*choose another run_root="),
        ("/proc", "choose another run_root="),
    ):
        with pytest.raises(CapacityError, match=reason) as raised:
            check_run_root(str(root))
        assert raised.value.exit_code == 3
        assert f"run_root={root}" in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_root_that_can_be_is_not_made_yet(tmp_path: Path) -> None:
    check_run_root(str(tmp_path))
    check_run_root(str(tmp_path / "runs"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [".", "runs"])
def test_a_run_root_of_another_owner_is_refused(tmp_path: Path, name: str) -> None:
    # Root may write everywhere: the question is asked as a user without rights.
    for directory in (tmp_path, *tmp_path.parents[:3]):
        directory.chmod(0o755)
    tmp_path.chmod(0o555)
    code = (
        "import os, sys\n"
        "from dsv3.errors import Dsv3Error; from dsv3.runs.directory import check_run_root\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "try: check_run_root(sys.argv[1])\n"
        "except Dsv3Error as error: print(error); sys.exit(error.exit_code)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / name)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    tmp_path.chmod(0o755)
    assert finished.returncode == 3, finished.stdout + finished.stderr
    assert "permission denied; make it writable" in finished.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_on_another_set_has_a_directory_of_its_own(config: RunConfig) -> None:
    run = create(config)
    assert run.latest_config() == run.config()
    own = config.evaluation.sequences
    assert run.evaluation(40, own) == run.evaluations / "step-40"
    assert run.evaluation(40, own + 1) == run.evaluations / f"step-40-sequences-{own + 1}"
