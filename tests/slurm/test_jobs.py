"""Jobs on a real Slurm, in every way one may end; the ranks are stubs, everything else is real."""

import json
import subprocess
import sys

import pytest

from slurm.project import Project

pytestmark = pytest.mark.slurm

STEPS = list(range(1, 21))


@pytest.fixture
def project(cluster, tmp_path):
    made = Project(cluster, tmp_path)
    made.profile()
    made.prepare()
    return made


@pytest.fixture
def hold(project, tmp_path):
    """A file that keeps runs at a step after their first checkpoint, until it is gone."""
    path = tmp_path / "hold"
    path.touch()
    project.profile(environment={"STUB_HOLD": str(path)})
    return path


def only(entries):
    [entry] = entries
    assert entry["outcome"] == "handed in"
    return entry["id"], entry["job"]


def test_an_array_is_handed_in_once_and_only_what_is_missing_afterwards(project, cluster, hold):
    entries = project.train("-m", "seed=1,2,3", "launcher.parallel=2")
    ids = [entry["id"] for entry in entries]
    numbers = {entry["job"].partition("_")[0] for entry in entries}
    assert len(numbers) == 1, "one array"
    [array] = numbers
    again = project.train("-m", "seed=1,2,3,4")
    assert [entry["outcome"] for entry in again] == ["there already"] * 3 + ["handed in"]
    hold.unlink()
    project.wait_done(*ids, again[3]["id"])
    assert [e["outcome"] for e in project.train("-m", "seed=1,2,3,4")] == ["done"] * 4
    for entry in [*entries, again[3]]:
        assert project.steps(entry["id"]) == STEPS
        assert project.status(entry["id"]) == "done"
    assert cluster.details(f"{array}_0")["NumNodes"] == "2"
    sweep = next((project.path / "sweeps").glob("*.json"))
    assert "error" not in project.check("status", str(sweep))


def test_a_preempted_job_saves_is_requeued_and_goes_on(project, cluster, hold):
    run, job = only(project.train())
    project.wait_for(run, "checkpoint")
    assert project.status(run) == "running"
    whole = ["--nodes=2", f"--cpus-per-task={cluster.shape.cpus}", "--ntasks-per-node=1"]
    cluster.sbatch("sleep 0.5", "--partition=high", *whole)
    project.wait_for(run, "stopped")
    cluster.wait_state(job, "PENDING", timeout_s=60)
    assert project.status(run) in ("queued", "starting", "running")
    hold.unlink()
    project.wait_done(run)
    assert project.steps(run) == STEPS
    starts = [event for event in project.events(run) if event["event"] == "started"]
    stopped = next(event for event in project.events(run) if event["event"] == "stopped")
    assert [start["step"] for start in starts] == [0, stopped["step"]]
    assert cluster.details(job)["Restarts"] == "1"


def test_a_saved_task_whose_number_is_its_arrays_takes_no_other_with_it(project, cluster, hold):
    """The last task of an array to be made has the array's number, which names all of its tasks."""
    entries = project.train("-m", "seed=1,2")
    for entry in entries:
        project.wait_for(entry["id"], "checkpoint")
    numbers = {entry["job"]: cluster.details(entry["job"])["JobId"] for entry in entries}
    [saved] = [job for job, raw in numbers.items() if raw == job.partition("_")[0]]
    [other] = set(numbers) - {saved}
    cluster.check("scancel", "--signal=USR1", saved)
    cluster.wait_state(saved, "PENDING")
    hold.unlink()
    project.wait_done(*(entry["id"] for entry in entries))
    assert cluster.details(saved)["Restarts"] == "1"
    assert cluster.details(other)["Restarts"] == "0"


def test_a_requeue_by_hand_goes_on_from_the_last_checkpoint(project, cluster, hold):
    run, job = only(project.train())
    project.wait_for(run, "checkpoint")
    cluster.check("scontrol", "requeue", job)
    cluster.wait_state(job, "PENDING")
    hold.unlink()
    project.wait_done(run)
    assert project.steps(run) == STEPS
    assert project.count(run, "job_started") == 2


def test_scancel_ends_a_run_and_it_is_handed_in_again_when_asked(project, cluster, hold):
    run, job = only(project.train())
    project.wait_for(run, "checkpoint")
    cluster.check("scancel", job)
    assert cluster.wait_ended(job).state == "CANCELLED"
    found = project.statuses()[run]
    assert found["status"] == "stopped"
    assert "cancelled" in found["job"]
    project.profile()
    again, second = only(project.train())
    assert (again, second) != (run, job)
    project.wait_done(run)


def test_cancel_saves_a_running_job_and_takes_back_one_that_waits(project, cluster, hold):
    entries = project.train("-m", "seed=1,2", "launcher.parallel=1")
    running, waiting = (entry["id"] for entry in entries)
    project.wait_for(running, "checkpoint")
    assert [project.status(running), project.status(waiting)] == ["running", "queued"]
    sweep = next((project.path / "sweeps").glob("*.json"))
    told = json.loads(project.check("cancel", str(sweep), "--json"))["cancelled"]
    assert ["save and stop" in told[0]["said"], "taken back" in told[1]["said"]] == [True, True]
    for entry in entries:
        cluster.wait_ended(entry["job"])
    assert project.count(running, "stopped") == 1
    assert [project.status(running), project.status(waiting)] == ["stopped", "new"]
    assert cluster.details(entries[0]["job"])["Restarts"] == "0"
    project.profile()
    project.check("resume", str(sweep), "--config-dir", "own")
    project.wait_done(running, waiting)


def test_a_node_that_fails_costs_what_came_after_the_last_checkpoint(project, cluster, hold):
    run, job = only(project.train())
    project.wait_for(run, "checkpoint")
    lost = cluster.nodes[1]
    cluster.kill_node(lost)
    cluster.wait_state(job, "PENDING")
    hold.unlink()
    cluster.revive_node(lost)
    project.wait_done(run, timeout_s=90)
    assert project.steps(run) == STEPS
    assert project.count(run, "job_started") == 2


ENDINGS = {
    "misconfigured": ("3", "6", 2, "stopped", "is no layer of this model"),
    "defect": ("3", "6", 70, "failed", "a defect of dsv3: ValueError: a defect of the stub"),
    "die": ("0", "1", 8, "failed", "started 2 times without a new checkpoint"),
}


def test_what_a_rank_dies_of_is_named_and_only_what_may_pass_is_requeued(project, cluster, hold):
    """A configuration is not tried again, nor a defect; a dead rank is, but not for ever."""
    jobs = {}
    for seed, (act, (rank, step, *_)) in enumerate(ENDINGS.items(), start=1):
        acts = {"STUB_ACT": act, "STUB_RANK": rank, "STUB_AT": step, "STUB_HOLD": str(hold)}
        project.profile(act, environment=acts)
        entries = project.train(f"seed={seed}", "launcher.fruitless_starts=2", profile=act)
        jobs[act] = only(entries)
    for act, (rank, _, code, status, words) in ENDINGS.items():
        run, job = jobs[act]
        assert cluster.wait_ended(job, timeout_s=90).state == "FAILED"
        assert cluster.details(job)["ExitCode"] == f"{code}:0"
        assert cluster.details(job)["Restarts"] == ("1" if act == "die" else "0")
        found = project.statuses()[run]
        assert (found["status"], words in found["failure"]) == (status, True)
        assert f"rank {rank}" in project.output(run)
    code, out, _ = project.dsv3(*project.asked("seed=3"))
    assert (code, json.loads(out)["runs"][0]["outcome"]) == (8, "failed before")
    hold.unlink()
    run, _ = only(project.train("--retry", "seed=3"))
    project.wait_done(run)


def test_a_job_that_slurm_refuses_is_told_and_leaves_no_doubt(project, cluster):
    project.profile(partition="nowhere")
    code, _, err = project.dsv3(*project.asked())
    assert code == 3
    assert "error[scheduler]: sbatch" in err
    assert "nvalid partition" in err
    said = project.dsv3(*project.asked("--dry-run"))[1]
    assert "nvalid partition" in json.loads(said)["jobs"][0]["verdict"]
    project.profile()
    run, _ = only(project.train())
    project.wait_done(run)


def test_a_full_disk_ends_a_job_with_its_name(project, cluster, hold, small_disk):
    root = f"run_root={small_disk.path / 'runs'}"
    entry = project.train(root)[0]
    run = small_disk.path / "runs" / entry["id"]
    metrics = run / "metrics.jsonl"
    cluster.wait(lambda: metrics.exists() and metrics.stat().st_size > 0, "the first step", 60)
    small_disk.fill()
    hold.unlink()
    assert cluster.wait_ended(entry["job"], timeout_s=60).state == "FAILED"
    said = json.loads(project.check("status", str(run), "--json"))["runs"][0]
    assert said["status"] == "stopped"
    assert "failed" in said["job"]
    small_disk.free()
    again = project.train(root)[0]
    assert again["outcome"] == "handed in"
    cluster.wait(lambda: (run / "DONE").exists(), "the run to end", 60)


def test_a_job_that_comes_late_finds_that_its_run_is_anothers(project, cluster, hold):
    """The same script handed in twice by hand, and one of an array that was replaced."""
    run, job = only(project.train())
    project.wait_for(run, "checkpoint")
    place = json.loads((project.path / "runs" / run / "job.json").read_text())
    script = project.path / "runs" / ".jobs" / place["key"] / "job.sh"
    twin = subprocess.run(
        ["sbatch", "--parsable", script.name],
        cwd=script.parent,
        env=cluster._env(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert cluster.wait_ended(f"{twin}_0").state == "COMPLETED"
    assert "has it already; nothing is started" in project.output(run)
    hold.unlink()
    project.wait_done(run)
    assert project.count(run, "job_started") == 1
    assert cluster.job(job).array != twin


def test_torchrun_starts_the_same_ranks_and_they_save_when_asked(project, cluster, hold):
    run, job = only(project.train("launcher.ranks_by=torchrun"))
    project.wait_for(run, "checkpoint", timeout_s=120)
    assert project.status(run) == "running"
    cluster.check("scancel", "--signal=USR1", job)
    project.wait_for(run, "job_ended", timeout_s=90)
    hold.unlink()
    project.wait_done(run, timeout_s=120)
    assert project.steps(run) == STEPS
    assert cluster.details(job)["Restarts"] == "1"


HOSTILE = 'it\'s a "$(touch x)" `id` ; #&\u00e9'


def test_hostile_paths_and_values_arrive_on_the_nodes(cluster, tmp_path):
    project = Project(cluster, tmp_path / HOSTILE)
    values = {"V_1": HOSTILE, "V_2": "'; touch y; '", "V_3": "%j %A \\ $HOME ~ *"}
    dump = f'{sys.executable} -c \'import json,os;json.dump(dict(os.environ),open("env","w"))\''
    project.profile(environment=values, setup=[dump])
    project.prepare()
    run, _ = only(project.train())
    project.wait_done(run)
    arrived = json.loads((project.path / "env").read_text())
    assert {name: arrived[name] for name in values} == values
    assert not [*project.path.rglob("x"), *project.path.rglob("y")]
    assert "job_started" in [event["event"] for event in project.events(run)]
    assert project.output(run)
    assert project.status(run) == "done"
