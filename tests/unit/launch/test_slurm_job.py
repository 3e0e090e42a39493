"""What a job does beside its ranks: it begins what is its own, and judges how ranks ended."""

import json

import pytest

from dsv3.errors import (
    ConfigError,
    NumericHealthError,
    Problem,
    RankLostError,
    SavedForRequeueError,
)
from dsv3.launch.group import Ending, Member
from dsv3.launch.slurm import task
from dsv3.launch.slurm.endings import NO_PROCESS, read_endings, start_directory, write_ending
from dsv3.launch.slurm.job import main
from dsv3.launch.slurm.place import place_from
from dsv3.launch.slurm.script import NO_MASTER, NOTHING_TO_DO
from dsv3.launch.stacks import Frame, Whereabouts
from dsv3.launch.submission import Intent, Place, PlannedRun, Submission, point_at
from dsv3.launch.watchdog import Silence
from dsv3.runs.board import Failure, Sign
from dsv3.runs.directory import RunDirectory, Status
from dsv3.runs.provenance import Provenance
from dsv3.runs.records import EventLog, read_lines

KEY = "0123456789ab"
SIGN = Sign(1.0, 30.0, "training", 7)


@pytest.fixture
def run(config):
    record = {"data_fingerprint": "d", "numerics_version": 2}
    return RunDirectory.create_or_open(config, overrides=(), provenance=Provenance(record, ""))


@pytest.fixture
def submission(run, tmp_path, monkeypatch):
    planned = PlannedRun(directory=run.path.absolute(), config="config.yaml")
    intent = Intent(
        key=KEY,
        launcher="slurm",
        profile="test",
        created_at="now",
        fruitless_starts=2,
        runs=(planned,),
    )
    start(monkeypatch, 0)
    return Submission.create(run.path.parent / ".jobs", intent, "#!/bin/bash\n")


def start(monkeypatch, restart: int, job: str = "41", array: str = "40") -> None:
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", array)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))


def begin(submission) -> int:
    return main(["begin", str(submission.path), "0"])


def end(submission, code: int) -> int:
    return main(["end", str(submission.path), "0", str(code)])


def says(submission, rank: int, error, *, lasting: bool = False, code: int | None = None) -> None:
    code = error.exit_code if code is None else code
    member = Member(rank, NO_PROCESS, code=code, sign=SIGN, failure=Failure(0.0, error, lasting))
    write_ending(start_directory(submission.of_job(0)), member)


def dies(submission, rank: int, number: int) -> None:
    member = Member(rank, NO_PROCESS, code=-number, sign=SIGN)
    write_ending(start_directory(submission.of_job(0)), member)


def test_a_job_begins_its_run_and_says_so(run, submission, capsys):
    assert begin(submission) == 0
    assert submission.has_begun(0)
    [event] = read_lines(run.events_path)
    assert (event["event"], event["array"], event["job"]) == ("job_started", KEY, "41")


def test_a_job_leaves_alone_what_is_done_cancelled_or_anothers(
    run, submission, monkeypatch, capsys
):
    point_at(run, Place(submission.path, "f" * 12, 0))
    assert begin(submission) == NOTHING_TO_DO
    point_at(run, Place(submission.path, KEY, 0))
    assert begin(submission) == 0
    start(monkeypatch, 0, job="51", array="50")
    assert begin(submission) == NOTHING_TO_DO, "the same script, handed in twice"
    assert "job 40 has it already" in capsys.readouterr().out
    start(monkeypatch, 1)
    assert begin(submission) == 0, "requeued"
    submission.mark_cancelled(0)
    assert begin(submission) == NOTHING_TO_DO
    run.mark_done({"loss": 1.0})
    assert begin(submission) == NOTHING_TO_DO


def test_saved_ranks_have_their_job_requeued(run, submission):
    begin(submission)
    says(submission, 0, SavedForRequeueError("SIGUSR1: saved at step 7"))
    assert end(submission, 0) == 85
    ended = submission.ending(0)
    assert (ended["requeue"], ended["exit_code"]) == (True, 85)


def test_a_cancelled_job_ends_for_good(run, submission):
    begin(submission)
    submission.mark_cancelled(0)
    says(submission, 0, SavedForRequeueError("SIGUSR1: saved at step 7"))
    assert end(submission, 0) == 0
    assert submission.ending(0)["requeue"] is False


def test_a_configuration_is_not_tried_again(run, submission, capsys):
    """Nobody else is blamed: neither who lost touch with that rank, nor whom srun killed then."""
    begin(submission)
    says(submission, 1, RankLostError("lost touch with the other ranks"))
    says(submission, 2, ConfigError(Problem("model.x=1", "is no layer")))
    dies(submission, 0, 9)
    assert end(submission, 2) == 2
    assert submission.ending(0)["problems"] == ["model.x=1: is no layer"]
    assert run.status() is not Status.FAILED
    assert "rank 2" in capsys.readouterr().err


def test_a_job_cancelled_before_its_ranks_were_there_is_no_failure(run, submission):
    begin(submission)
    submission.mark_cancelled(0)
    assert end(submission, 0) == 0
    assert task.main([str(submission.path), "0"]) == 0, "nor does it start any"


def test_a_rank_that_dies_first_is_the_one_to_be_named(run, submission, capsys):
    begin(submission)
    says(submission, 1, RankLostError("lost touch with the other ranks"))
    dies(submission, 2, 11)
    dies(submission, 0, 9)
    assert end(submission, 1) == 85
    assert "rank 2 was killed by SIGSEGV" in submission.ending(0)["problems"][0]


def test_lasting_failures_are_written_into_the_run(run, submission, capsys):
    begin(submission)
    says(submission, 1, NumericHealthError("loss is not finite"), lasting=True)
    assert end(submission, 5) == 5
    assert run.failure()["rank"] == 1
    assert run.status() is Status.FAILED


def test_a_dead_rank_is_named_and_its_job_requeued_but_not_for_ever(
    run, submission, monkeypatch, capsys
):
    begin(submission)
    dies(submission, 3, 9)
    assert end(submission, 137) == 85
    assert "rank 3 was killed by SIGKILL" in capsys.readouterr().out
    start(monkeypatch, 1)
    assert begin(submission) == 0
    dies(submission, 3, 9)
    assert end(submission, 137) == 8
    assert run.status() is Status.FAILED
    assert "started 2 times without a new checkpoint" in str(run.failure())
    start(monkeypatch, 2)
    assert begin(submission) == 8, "requeued by Slurm itself"


def test_a_new_checkpoint_gives_a_job_its_starts_again(run, submission, monkeypatch):
    for restart in range(5):
        start(monkeypatch, restart)
        assert begin(submission) == 0
        with EventLog(run.events_path) as events:
            events.event("checkpoint", step=restart)
        dies(submission, 0, 9)
        assert end(submission, 137) == 85


def test_ranks_that_say_nothing_are_lost(run, submission, capsys):
    begin(submission)
    assert end(submission, 1) == 85
    assert "no rank said why" in submission.ending(0)["problems"][0]
    assert end(submission, NO_MASTER) == 3
    assert "scontrol names no host" in submission.ending(0)["problems"][0]


def test_a_silent_rank_is_told_with_its_stack(run, submission, capsys):
    begin(submission)
    member = Member(2, NO_PROCESS, code=-9, killed_by_launcher=True, sign=SIGN)
    place = Whereabouts("sleeping", (Frame("a.py", 3, "wait"),), run.logs / "rank-2.stack")
    write_ending(
        start_directory(submission.of_job(0)),
        member,
        Ending([member], Silence(2, 31.0, SIGN), {2: place}),
    )
    found = read_endings(start_directory(submission.of_job(0)))
    assert found.whereabouts == {2: place}
    assert end(submission, 8) == 85
    said = capsys.readouterr().out
    assert "rank 2 gave no sign of life for 31 s while training, after step 7" in said
    assert "wait (a.py:3)" in said


def test_the_end_of_another_start_is_not_this_ones(run, submission, monkeypatch):
    begin(submission)
    dies(submission, 1, 9)
    end(submission, 137)
    with EventLog(run.events_path) as events:
        events.event("checkpoint", step=1)
    start(monkeypatch, 1)
    begin(submission)
    says(submission, 0, SavedForRequeueError("saved"))
    assert end(submission, 0) == 85
    assert submission.ending(0)["problems"] == ["saved"]


def test_a_damaged_ending_says_nothing(submission, run):
    begin(submission)
    directory = start_directory(submission.of_job(0))
    directory.mkdir()
    (directory / "rank-0.json").write_text("{")
    assert read_endings(directory).members == []
    assert json.loads((submission.path / "intent.json").read_text())["key"] == KEY


# Places

SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "20041",
}


def test_a_rank_finds_its_place_in_slurms_variables():
    place = place_from(SRUN, world_size=8)
    assert (place.rank, place.local_rank, place.local_world_size, place.store) == (5, 1, 4, "serve")
    assert place.variables()["MASTER_ADDR"] == "node1"
    torchrun = {
        "TORCHELASTIC_RUN_ID": "1-0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "RANK": "2",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "2",
        "LOCAL_WORLD_SIZE": "4",
    }
    place = place_from(SRUN | torchrun, world_size=8)
    assert (place.rank, place.local_world_size, place.store) == (2, 4, "join")


@pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_LOCALID", "MASTER_ADDR", "MASTER_PORT"])
def test_what_is_missing_is_named_and_nothing_is_guessed(name):
    with pytest.raises(ConfigError, match=f"{name} is not set"):
        place_from(SRUN | {name: ""}, world_size=8)


def test_a_job_of_another_size_is_refused():
    with pytest.raises(ConfigError, match=r"SLURM_NTASKS=8: the layout of the run has 4"):
        place_from(SRUN, world_size=4)
