"""A controller that is late or away while jobs are handed in: one job in the end, and a message."""

import json
import shutil

import pytest

from slurm.configuration import MESSAGE_TIMEOUT_S
from slurm.project import Project

pytestmark = pytest.mark.slurm


@pytest.fixture
def project(cluster, tmp_path):
    made = Project(cluster, tmp_path)
    made.profile()
    made.prepare()
    return made


# The controller stops when a job is about to be handed in, and goes on after sbatch has given up.
LATE = """#!/bin/bash
case " $* " in *" --test-only "*) ;; *)
  kill -STOP {controller}
  (sleep {late_s}; kill -CONT {controller}) > /dev/null 2>&1 &
  {sbatch} "$@" 2>&1 | tee {said} >&2
  exit "${{PIPESTATUS[0]}}" ;;
esac
exec {sbatch} "$@"
"""


def test_a_job_that_is_taken_after_sbatch_gave_up_is_handed_in_once(project, cluster, tmp_path):
    """sbatch says `Socket timed out`, and the controller takes the job when it goes on."""
    said, program = tmp_path / "said", tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    path = cluster.env["PATH"]
    program.write_text(
        LATE.format(
            controller=cluster.controller_pid, late_s=2 * MESSAGE_TIMEOUT_S,
            sbatch=shutil.which("sbatch", path=path), said=said,
        )
    )  # fmt: skip
    program.chmod(0o755)
    code, out, err = project.dsv3(*project.asked(), env={"PATH": f"{program.parent}:{path}"})
    assert "Socket timed out" in said.read_text()
    assert code == 0, err
    [entry] = json.loads(out)["runs"]
    assert entry["outcome"] == "handed in"
    project.wait_done(entry["id"])
    name = cluster.job(entry["job"]).name
    assert [row.id for row in cluster.jobs(name)] == [entry["job"]]


def test_without_a_controller_a_command_ends_with_its_name_and_is_asked_again(project, cluster):
    cluster.stop_controller()
    code, out, err = project.dsv3(*project.asked())
    assert (code, json.loads(out)["error"]["id"]) == (3, "scheduler")
    assert "error[scheduler]" in err
    assert "Unable to contact slurm controller" in err
    cluster.start_controller()
    assert cluster.jobs() == [] or all(row.ended for row in cluster.jobs())
    [entry] = project.train()
    assert entry["outcome"] == "handed in"
    project.wait_done(entry["id"])
