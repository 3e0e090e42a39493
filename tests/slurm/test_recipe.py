"""The promise: a recipe over two nodes, preempted and cut off by its time limit, to the same bits."""

import json

import pytest

from slurm.project import Project

pytestmark = pytest.mark.slurm

STEPS = 240
RECIPE = ["recipe=table5_balance", "seed=1", "run.digests=true", "evaluation.every_steps=null"]


@pytest.fixture
def project(cluster, tmp_path):
    made = Project(cluster, tmp_path, steps=STEPS)
    made.profile("calm", partition="normal", environment={"STUB_RANKS": ""})
    made.prepare()
    return made


def digests(project, root, run):
    return (project.path / root / run / "digests.jsonl").read_text()


def test_a_recipe_survives_preemption_and_its_time_limit_to_the_bit(project, cluster):
    # What it is without any of it, by the same ranks.
    calm = project.train(*RECIPE, "run_root=calm", "sweep_root=calm-sweeps", profile="calm")
    runs = [entry["id"] for entry in calm]
    done = [project.path / "calm" / run / "DONE" for run in runs]
    cluster.wait(lambda: all(path.exists() for path in done), "the calm runs", 240)

    limits = ["launcher.time=0:02:00", "launcher.save_seconds=60"]
    entries = project.train(*RECIPE, *limits, profile="test")
    assert [entry["id"] for entry in entries] == runs
    jobs = [entry["job"] for entry in entries]
    assert len({job.partition("_")[0] for job in jobs}) == 1, "one array"
    for run in runs:
        project.wait_for(run, "checkpoint", timeout_s=120)
    found = project.statuses()
    assert [found[run]["status"] for run in runs] == ["running"] * 2
    assert all(found[run]["job"].endswith("running") for run in runs)

    # One is preempted: the high one needs the CPUs that it has, and no more.
    free = cluster.shape.cpus - 2
    cluster.sbatch(
        "sleep 1", "--partition=high", "--nodes=2", "--ntasks-per-node=1", f"--cpus-per-task={free}"
    )
    preempted = project.wait_any(runs, "stopped")
    [other] = [run for run in runs if run != preempted]
    assert project.statuses()[preempted]["status"] in ("queued", "starting")
    # The other, and maybe both, meet the limit.
    project.wait_for(other, "stopped", timeout_s=120)
    project.wait_done(*runs, timeout_s=240)

    for run in runs:
        assert project.status(run) == "done"
        assert project.steps(run) == list(range(1, STEPS + 1))
        assert project.count(run, "job_started") >= 2
        assert digests(project, "runs", run) == digests(project, "calm", run), run
        attempts = (project.path / "runs" / run / "attempts.jsonl").read_text().splitlines()
        numbers = [json.loads(line)["attempt"] for line in attempts]
        assert numbers == list(range(1, len(numbers) + 1))
    assert [entry["outcome"] for entry in project.train(*RECIPE, profile="test")] == ["done"] * 2
    assert "verdict" in project.check("report", "table5_balance").lower()
