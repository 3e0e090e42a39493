"""`dsv3 train recipe=table5_balance ... launcher=slurm` on two nodes, through all that may happen.

Runs that were preempted, ended at their time limit, lost a node, were requeued or cancelled by hand
end with the digests of runs that were trained here without a cluster, and undisturbed.
"""

import json
import signal

import pytest

from slurm.project import LAYOUT, Project
from slurm.training import PATIENCE_S, RECIPE, STEPS, digests, held, project_at, references

pytestmark = pytest.mark.slurm

# Two ranks on two nodes: half the processes of the layout above.
ONE_EACH = {"ranks_per_node": 1, "environment": {"STUB_RANKS": ""}}


@pytest.fixture(scope="module")
def prepared(started_cluster, tmp_path_factory):
    return project_at(started_cluster, tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def wanted_ep2(prepared):
    return references(prepared, "parallelism=ep2")


@pytest.fixture
def project(cluster, prepared, tmp_path):
    """A directory of its own for every test, with the same text."""
    return project_at(cluster, tmp_path, prepared)


def statuses(project: Project, jobs: list[tuple[str, str]]) -> list[str]:
    found = project.statuses()
    return [found[run]["status"] for run, _ in jobs]


def hand_in_recipe(project: Project) -> list[tuple[str, str]]:
    """(run, job) of both runs, which are one array."""
    entries = project.train(*RECIPE, profile="test")
    assert [entry["outcome"] for entry in entries] == ["handed in"] * 2
    jobs = [(entry["id"], entry["job"]) for entry in entries]
    assert len({job.partition("_")[0] for _, job in jobs}) == 1, "one array"
    return jobs


def test_a_preempted_run_and_one_at_its_time_limit_are_requeued_and_end_exactly(project, cluster):
    wanted = references(project, *RECIPE, LAYOUT)
    jobs = hand_in_recipe(project)
    assert set(statuses(project, jobs)) <= {"queued", "starting", "running"}
    for _, job in jobs:
        cluster.wait_state(job, "RUNNING")
        assert cluster.job(job).nodes == "dsv3-node[1-2]"
    with held(project, *jobs) as ranks:
        assert statuses(project, jobs) == ["running", "running"]
        # All that is free on each node, and two CPUs more: one of the two has to go.
        most = cluster.shape.cpus - 2
        options = ["--nodes=2", "--ntasks-per-node=1", f"--cpus-per-task={most}"]
        high = cluster.sbatch("sleep 1", "--partition=high", *options)

        def is_told(number: int) -> bool:
            return (
                ranks[number].sent(signal.SIGUSR1) or project.count(jobs[number][0], "stopped") > 0
            )

        cluster.wait(lambda: is_told(0) or is_told(1), "a preemption", PATIENCE_S)
        preempted = 0 if is_told(0) else 1
        limited = 1 - preempted
        assert not is_told(limited), "of the two one was enough"
        cluster.check("scontrol", "update", f"JobId={jobs[limited][1]}", "TimeLimit=1")
        for number in (preempted, limited):
            run, job = jobs[number]
            ranks[number].wait_for_signal(signal.SIGUSR1)
            if number == limited:  # told; requeued with such a limit it would be told at once
                cluster.check("scontrol", "update", f"JobId={job}", "TimeLimit=10")
            ranks[number].release()
            project.wait_for(run, "stopped", timeout_s=PATIENCE_S)
            cluster.wait_state(job, "PENDING", timeout_s=PATIENCE_S)
            assert statuses(project, jobs)[number] == "queued"
    assert cluster.wait_ended(high).state == "COMPLETED"
    project.wait_done(*(run for run, _ in jobs), timeout_s=PATIENCE_S)
    for _, job in jobs:
        assert cluster.wait_ended(job).state == "COMPLETED"
        assert cluster.details(job)["Restarts"] == "1"
    assert statuses(project, jobs) == ["done", "done"]
    assert digests(project.path / "runs") == wanted
    report = project.check("report", "table5_balance", "--json")
    assert all(run in report for run, _ in jobs)
    known = len(cluster.jobs())
    again = project.train(*RECIPE, profile="test")
    assert [entry["outcome"] for entry in again] == ["done", "done"]
    assert len(cluster.jobs()) == known


def test_a_lost_node_a_requeue_and_a_cancelled_job_cost_no_step(project, cluster, wanted_ep2):
    project.profile("one_each", **ONE_EACH)
    asked = ["parallelism=ep2"]
    [entry] = project.train(*asked, profile="one_each")
    run, job = entry["id"], entry["job"]
    with held(project, (run, job), ranks=2):
        cluster.kill_node(cluster.nodes[1])
    cluster.wait_state(job, "PENDING", timeout_s=60)
    assert project.status(run) == "queued"
    cluster.revive_node(cluster.nodes[1])
    project.wait_for(run, "started", times=2, timeout_s=PATIENCE_S)
    cluster.check("scontrol", "requeue", job)
    assert project.train(*asked, profile="one_each")[0]["outcome"] == "there already"
    project.wait_for(run, "started", times=3, timeout_s=PATIENCE_S)
    assert cluster.details(job)["Restarts"] == "2"
    cluster.check("scancel", job)
    assert cluster.wait_ended(job).state == "CANCELLED"
    assert project.status(run) == "stopped"
    [entry] = project.train(*asked, profile="one_each")
    assert entry["outcome"] == "handed in"
    assert entry["job"] != job
    project.wait_done(run, timeout_s=PATIENCE_S)
    assert digests(project.path / "runs") == wanted_ep2
    assert project.status(run) == "done"
    steps = project.steps(run)
    assert steps == sorted(set(steps)), "every step once"


def test_a_run_that_stopped_goes_on_with_more_ranks_and_by_torchrun(project, cluster):
    """Four ranks, which torchrun starts, go on where two were told to save."""
    project.profile("one_each", **ONE_EACH)
    [entry] = project.train("parallelism=ep2", profile="one_each")
    run, job = entry["id"], entry["job"]
    with held(project, (run, job), ranks=2):
        told = project.check("cancel", f"runs/{run}")
        assert "save and stop" in told
    project.wait_for(run, "stopped", timeout_s=PATIENCE_S)
    cluster.wait_ended(job, PATIENCE_S)
    [entry] = project.train("launcher.ranks_by=torchrun", profile="test")
    assert (entry["id"], entry["outcome"]) == (run, "handed in")
    project.wait_done(run, timeout_s=PATIENCE_S)
    first, second = (e for e in project.events(run) if e["event"] == "started")
    [stopped] = (e for e in project.events(run) if e["event"] == "stopped")
    assert (first["step"], second["step"]) == (0, stopped["step"])
    assert project.steps(run) == list(range(1, STEPS + 1)), "every step once"
    assert [start["layout"]["world_size"] for start in project.attempts(run)] == [2, 4]
    assert project.status(run) == "done"


def test_ranks_whose_numbers_are_none_end_their_job_for_good(project, cluster):
    """A learning rate that no run survives: every rank raises, and no requeue would help."""
    project.profile("one_each", **ONE_EACH)
    asked = project.asked("parallelism=ep2", "schedule.lr=1e30", profile="one_each")
    [entry] = json.loads(project.check(*asked))["runs"]
    assert cluster.wait_ended(entry["job"], PATIENCE_S).state == "FAILED"
    assert cluster.details(entry["job"])["ExitCode"] == "5:0"
    assert cluster.details(entry["job"])["Restarts"] == "0"
    found = project.statuses()[entry["id"]]
    assert found["status"] == "failed"
    assert "is nan" in found["failure"]
    code, out, _ = project.dsv3(*asked)
    assert (code, json.loads(out)["runs"][0]["outcome"]) == (5, "failed before")


def test_a_disk_that_fills_under_ranks_costs_nothing_but_time(
    project, cluster, small_disk, wanted_ep2
):
    project.profile("one_each", **ONE_EACH)
    (project.path / "runs").symlink_to(small_disk.path)
    [entry] = project.train("parallelism=ep2", profile="one_each")
    run, job = entry["id"], entry["job"]
    with held(project, (run, job), ranks=2):
        small_disk.fill()
    assert cluster.wait_ended(job, PATIENCE_S).state == "FAILED"
    found = project.statuses()[run]
    assert found["status"] in {"stopped", "failed"}
    assert "space" in json.dumps(found) + project.output(run)
    small_disk.free()
    [entry] = project.train("parallelism=ep2", "--retry", profile="one_each")
    assert entry["outcome"] == "handed in"
    project.wait_done(run, timeout_s=PATIENCE_S)
    assert digests(project.path / "runs") == wanted_ep2
