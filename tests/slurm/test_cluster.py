"""The test cluster is a Slurm: what the other tests here rely on, seen happening."""

import re
import shlex
import time
from pathlib import Path

import pytest

from slurm.cluster import Cluster, ClusterError
from slurm.configuration import GRACE_S, Shape
from slurm.processes import started_at, with_environment

pytestmark = pytest.mark.slurm

# A step that says which signal it got on which node, and ends as a rank does that has saved.
STEP = """trap 'echo USR1 on $SLURMD_NODENAME; exit 85' USR1
echo start $SLURM_RESTART_COUNT on $SLURMD_NODENAME; sleep 120 & wait"""
STEP_ON_ALL = f"srun --kill-on-bad-exit=1 bash -c {shlex.quote(STEP)}"


def says(cluster: Cluster, number: str, *words: str, times: int = 1, timeout_s: float = 30) -> None:
    for word in words:
        cluster.wait(
            lambda word=word: cluster.output(number).count(word) >= times,
            f"job {number} to say {word!r} {times} times, not {cluster.output(number)!r}",
            timeout_s,
        )


def test_an_array_runs_on_two_nodes_with_its_own_gpus(cluster):
    step = "echo $SLURM_ARRAY_TASK_ID at $SLURMD_NODENAME: $CUDA_VISIBLE_DEVICES; sleep 1"
    body = f"srun bash -c {shlex.quote(step)}"
    options = ["--array=0-1", "--nodes=2", "--gpus-per-node=2", "--comment=key of array"]
    number = cluster.sbatch(body, *options)
    for task in (0, 1):
        assert cluster.wait_ended(f"{number}_{task}").state == "COMPLETED"
    rows = cluster.jobs("key of array")
    assert [(row.array, row.task) for row in rows] == [(number, 0), (number, 1)]
    text = "".join(path.read_text() for path in (cluster.base / "log").glob("job-*.out"))
    for node in cluster.nodes:
        gpus = [re.findall(rf"{task} at {node}: ([\d,]+)", text) for task in (0, 1)]
        assert sorted(gpus) == [["0,1"], ["2,3"]], "two of each node for each task"
    assert cluster.check("scontrol", "show", "hostnames", rows[0].nodes).split() == cluster.nodes


def test_usr1_before_the_time_limit_and_on_preemption_which_requeues(cluster):
    """Both at once, for limits are looked at every 30 s.

    A preempted script that ends by itself is not requeued, so it asks for that, and waits.
    """
    limited = cluster.sbatch(STEP_ON_ALL, "--time=1", "--signal=USR1@50", "--nodes=2")
    body = f"{STEP_ON_ALL}\n[ $? = 85 ] && scontrol requeue $SLURM_JOB_ID && sleep 60"
    all_gpus = ["--nodes=2", f"--gpus-per-node={cluster.shape.gpus}"]
    options = ["--partition=preemptable", "--requeue", "--signal=USR1@50", *all_gpus]
    low = cluster.sbatch(body, *options)
    says(cluster, low, *(f"start on {node}" for node in cluster.nodes))
    started = time.monotonic()
    high = cluster.sbatch("sleep 0.1", "--partition=high", *all_gpus)
    says(cluster, low, *(f"USR1 on {node}" for node in cluster.nodes))
    assert cluster.wait_ended(high).state == "COMPLETED"
    assert time.monotonic() - started < GRACE_S, "the grace period ran out instead"
    says(cluster, low, "start 1 on")
    assert cluster.details(low)["Restarts"] == "1"
    says(cluster, limited, *(f"USR1 on {node}" for node in cluster.nodes), timeout_s=45)
    assert cluster.wait_ended(limited).state == "FAILED"
    assert cluster.details(limited)["ExitCode"] == "85:0"


def test_a_node_that_fails_has_its_job_requeued(cluster):
    lost = cluster.nodes[1]
    number = cluster.sbatch(STEP_ON_ALL, "--nodes=1", f"--nodelist={lost}", "--requeue")
    says(cluster, number, f"start on {lost}")
    cluster.kill_node(lost)
    assert not with_environment({"SLURM_CONF": str(cluster.conf), "SLURMD_NODENAME": lost})
    job = cluster.wait_state(number, "PENDING")
    assert job.nodes == ""
    assert "down" in cluster.node_state(lost)
    cluster.revive_node(lost)
    says(cluster, number, "start 1 on")


def test_scancel_ends_one_task_of_an_array(cluster):
    number = cluster.sbatch("sleep 60", "--array=0-1")
    for task in (0, 1):
        cluster.wait_state(f"{number}_{task}", "RUNNING")
    cluster.check("scancel", f"{number}_1")
    assert cluster.wait_ended(f"{number}_1").state == "CANCELLED"
    assert cluster.job(f"{number}_0").state == "RUNNING"


def test_jobs_outlive_a_controller_that_dies(cluster):
    number = cluster.sbatch("sleep 1; echo through")
    cluster.wait_state(number, "RUNNING")
    cluster.stop_controller()
    refused = cluster.run("sbatch", "--wrap=true")
    assert refused.returncode == 1
    assert "Unable to contact slurm controller (connect failure)" in refused.stderr
    cluster.start_controller()
    assert cluster.wait_ended(number).state == "COMPLETED"
    says(cluster, number, "through")


def test_a_controller_that_hangs_accepts_what_it_reports_as_timed_out(cluster):
    """The lie that the lying scheduler is about is what the real one does."""
    cluster.freeze_controller()
    said = cluster.run("sbatch", "--wrap=true", "--comment=accepted in silence")
    cluster.thaw_controller()
    assert said.returncode == 1
    assert "Socket timed out on send/recv operation" in said.stderr
    cluster.wait(lambda: len(cluster.jobs("accepted in silence")) == 1, "the job that timed out")


def test_a_small_disk_is_full_for_jobs_too(cluster, small_disk):
    small_disk.fill()
    body = f"echo more > {small_disk.path}/file && exit 0; exit 28"
    number = cluster.sbatch(body)
    assert cluster.wait_ended(number).state == "FAILED"
    assert cluster.details(number)["ExitCode"] == "28:0"
    small_disk.free()
    assert cluster.wait_ended(cluster.sbatch(body)).state == "COMPLETED"


def test_a_second_cluster_ends_alone(cluster, tmp_path):
    other = Cluster(tmp_path / "other", Shape(nodes=1, gpus=1))
    tmp_path.chmod(0o755)
    hosts = Path("/etc/hosts").read_text()
    other.up()
    number = other.sbatch("sleep 60")
    other.wait_state(number, "RUNNING")
    [node] = other.nodes
    other.wait(lambda: len(other._of_node(node)) >= 2, "the step's daemon, and the script")
    pids = [other._daemons.pid(name) for name in other._daemons.names()]
    assert len(pids) == 3, "munged, slurmctld, slurmd"
    pids += other._of_node(node)
    other.down()
    assert [pid for pid in pids if started_at(pid)] == []
    assert Path("/etc/hosts").read_text() == hosts
    assert cluster.wait_ended(cluster.sbatch("true")).state == "COMPLETED"


def test_waiting_for_what_never_comes_fails_with_evidence(cluster):
    with pytest.raises(ClusterError, match=r"waited 0\.2 s for rain\n(.|\n)*slurmctld"):
        cluster.wait(lambda: False, "rain", 0.2)
