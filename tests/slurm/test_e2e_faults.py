"""Faults of a cluster under ranks that truly train: each ends in the right state, with a message.

Asked for again, only what is missing is handed in, and the digests are those of a run without it.
"""

import json
import threading
import time

import pytest

from slurm.configuration import MESSAGE_TIMEOUT_S
from slurm.project import Project
from slurm.training import OPTIONS, PATIENCE_S, digests, held

pytestmark = pytest.mark.slurm

STEPS = 60


@pytest.fixture(scope="module")
def prepared(started_cluster, tmp_path_factory):
    project = Project(started_cluster, tmp_path_factory.mktemp("faults"), steps=STEPS)
    project.prepare()
    return project


@pytest.fixture
def project(cluster, prepared, tmp_path):
    made = Project(cluster, tmp_path, steps=STEPS)
    made.words = prepared.words
    return made


def asked(project: Project, *words: str) -> tuple[int, list[dict], str]:
    """Exit code, runs and errors of a `train` on the test profile, with real ranks."""
    code, out, err = project.dsv3(*project.asked(*OPTIONS, *words, profile="test"))
    return code, json.loads(out)["runs"] if out else [], err


def test_a_rank_whose_numbers_are_no_numbers_ends_its_job_for_good(project, cluster):
    """The loss of a step so long is infinite; every rank raises, rank 0 is heard first or not."""
    _, [entry], _ = asked(project, "schedule.lr=1e30", "health.on_non_finite=stop")
    assert cluster.wait_ended(entry["job"], PATIENCE_S).state == "FAILED"
    assert cluster.details(entry["job"])["ExitCode"] == "5:0"
    assert cluster.details(entry["job"])["Restarts"] == "0"
    found = project.statuses()[entry["id"]]
    assert found["status"] == "failed"
    assert "finite" in found["failure"]
    code, [again], _ = asked(project, "schedule.lr=1e30", "health.on_non_finite=stop")
    assert (code, again["outcome"]) == (5, "failed before")


def test_a_controller_that_answers_too_late_has_one_job_in_the_end(project, cluster):
    """sbatch says `Socket timed out`, and the controller takes the job afterwards."""
    cluster.freeze_controller()
    late = threading.Timer(2 * MESSAGE_TIMEOUT_S, cluster.thaw_controller)
    late.start()
    code, [entry], err = asked(project)
    late.join()
    assert (code, entry["outcome"]) == (0, "handed in"), err
    assert [row.id for row in cluster.jobs() if not row.ended] == [entry["job"]]
    project.wait_done(entry["id"], timeout_s=PATIENCE_S)
    time.sleep(1)
    assert len([row for row in cluster.jobs() if row.name == cluster.job(entry["job"]).name]) == 1


def test_a_disk_that_fills_while_ranks_train_costs_nothing_but_time(
    project, cluster, small_disk, prepared
):
    on_it = f"run_root={small_disk.path}"
    _, [entry], _ = asked(project, on_it)
    run, job = small_disk.path / entry["id"], entry["job"]

    def count(name: str) -> int:
        path = run / "events.jsonl"
        return path.read_text().count(f'"event": "{name}"') if path.exists() else 0

    project.count = lambda run, name: count(name)
    with held(project, (entry["id"], job)):
        small_disk.fill()
    assert cluster.wait_ended(job, PATIENCE_S).state == "FAILED"
    [found] = json.loads(project.check("status", str(run), "--json"))["runs"]
    assert found["status"] in {"stopped", "failed"}
    assert not (run / "DONE").exists()
    small_disk.free()
    _, [again], _ = asked(project, on_it, "--retry")
    assert again["outcome"] == "handed in"
    cluster.wait((run / "DONE").exists, "the run to end", PATIENCE_S)
    undisturbed = asked(project, "run_root=undisturbed")[1][0]["id"]
    other = project.path / "undisturbed" / undisturbed
    cluster.wait((other / "DONE").exists, "the other run to end", PATIENCE_S)
    assert undisturbed == entry["id"]
    assert digests(small_disk.path) == digests(project.path / "undisturbed")
