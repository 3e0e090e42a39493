"""`dsv3 train recipe=table5_balance ... launcher=slurm` on two nodes, through all that may happen.

Runs that were preempted, ended at their time limit, lost a node, were requeued or cancelled by hand
end with the digests of runs that were trained here without a cluster, and undisturbed.
"""

import json
import signal

import pytest

from slurm.project import Project
from slurm.training import OPTIONS, PATIENCE_S, RECIPE, STEPS, digests, held, references

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def undisturbed(started_cluster, tmp_path_factory):
    """A project with its text prepared, and the digests of both runs of the recipe."""
    project = Project(started_cluster, tmp_path_factory.mktemp("recipe"), steps=STEPS)
    project.prepare()
    return project, references(project, *RECIPE)


@pytest.fixture
def project(cluster, undisturbed, tmp_path):
    """A directory of its own for every test, with the same text."""
    made = Project(cluster, tmp_path, steps=STEPS)
    made.words = undisturbed[0].words
    return made


@pytest.fixture
def wanted(undisturbed):
    return undisturbed[1]


def hand_in(project: Project) -> list[tuple[str, str]]:
    """(run, job) of both runs, which are one array."""
    entries = project.train(*RECIPE, *OPTIONS, profile="test")
    assert [entry["outcome"] for entry in entries] == ["handed in"] * 2
    jobs = [(entry["id"], entry["job"]) for entry in entries]
    assert len({job.partition("_")[0] for _, job in jobs}) == 1, "one array"
    return jobs


def statuses(project: Project, jobs: list[tuple[str, str]]) -> list[str]:
    found = project.statuses()
    return [found[run]["status"] for run, _ in jobs]


def wait_done(project: Project, jobs: list[tuple[str, str]]) -> None:
    project.wait_done(*(run for run, _ in jobs), timeout_s=PATIENCE_S)


def test_a_preempted_run_and_one_at_its_time_limit_are_requeued_and_end_exactly(
    project, cluster, wanted
):
    jobs = hand_in(project)
    assert set(statuses(project, jobs)) <= {"queued", "running"}
    for _, job in jobs:
        cluster.wait_state(job, "RUNNING")
        assert cluster.job(job).nodes == "dsv3-node[1-2]"
    with held(project, *jobs) as ranks:
        assert statuses(project, jobs) == ["running", "running"]
        # Room for all of it but two CPUs of each node: one of the two has to go.
        free = cluster.shape.cpus - 2
        options = ["--nodes=2", "--ntasks-per-node=1", f"--cpus-per-task={free}"]
        high = cluster.sbatch("sleep 1", "--partition=high", *options)
        cluster.wait(lambda: any(has_usr1(each) for each in ranks), "a preemption", PATIENCE_S)
        preempted = 0 if has_usr1(ranks[0]) else 1
        limited = 1 - preempted
        assert not has_usr1(ranks[limited]), "of the two one was enough"
        cluster.check("scontrol", "update", f"JobId={ranks[limited].raw}", "TimeLimit=1")
        ranks[preempted].wait_for_signal(signal.SIGUSR1)
        ranks[preempted].release()
        project.wait_for(jobs[preempted][0], "stopped", timeout_s=PATIENCE_S)
        cluster.wait_state(jobs[preempted][1], "PENDING")
        assert statuses(project, jobs)[preempted] == "queued"
        ranks[limited].wait_for_signal(signal.SIGUSR1)
        ranks[limited].release()
        project.wait_for(jobs[limited][0], "stopped", timeout_s=PATIENCE_S)
        cluster.wait_state(jobs[limited][1], "PENDING")
        cluster.check("scontrol", "update", f"JobId={ranks[limited].raw}", "TimeLimit=10")
    assert cluster.wait_ended(high).state == "COMPLETED"
    wait_done(project, jobs)
    for _, job in jobs:
        assert cluster.wait_ended(job).state == "COMPLETED"
        assert cluster.details(job)["Restarts"] == "1"
    assert statuses(project, jobs) == ["done", "done"]
    assert digests(project.path / "runs") == wanted
    report = project.check("report", "table5_balance", "--json")
    assert all(run in report for run, _ in jobs)
    before = len(cluster.jobs())
    again = project.train(*RECIPE, *OPTIONS, profile="test")
    assert [entry["outcome"] for entry in again] == ["done", "done"]
    assert len(cluster.jobs()) == before


def has_usr1(ranks):
    return any(ranks.has_been_sent(pid, signal.SIGUSR1) for pid in ranks.pids)


def test_a_lost_node_a_requeue_and_a_cancelled_run_cost_no_step(project, cluster, wanted):
    jobs = hand_in(project)
    (_, first_job), (second, second_job) = jobs
    with held(project, *jobs):
        cluster.kill_node(cluster.nodes[1])
    for _, job in jobs:
        cluster.wait_state(job, "PENDING", timeout_s=60)
    assert statuses(project, jobs) == ["queued", "queued"]
    cluster.revive_node(cluster.nodes[1])
    for run, _ in jobs:
        project.wait_for(run, "started", times=2, timeout_s=PATIENCE_S)
    cluster.check("scontrol", "requeue", first_job)
    cluster.check("scancel", second_job)
    assert cluster.wait_ended(second_job).state == "CANCELLED"
    assert statuses(project, jobs)[1] == "stopped"
    entries = project.train(*RECIPE, *OPTIONS, profile="test")
    assert [entry["outcome"] for entry in entries] == ["there already", "handed in"]
    assert entries[0]["job"] == first_job
    wait_done(project, jobs)
    assert digests(project.path / "runs") == wanted
    assert cluster.details(first_job)["Restarts"] == "2"
    assert statuses(project, jobs) == ["done", "done"]
    assert project.count(second, "job_started") == 3
    assert json.loads(project.check("report", "table5_balance", "--json"))
