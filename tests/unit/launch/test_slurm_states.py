"""What Slurm's commands print is read with care; what they say of a submission is weighed."""

import os
import stat
from pathlib import Path

import pytest

from dsv3.launch.scheduler import DoubtError, SchedulerError
from dsv3.launch.slurm.commands import Slurm
from dsv3.launch.slurm.states import HEADER, read_sacct, read_scontrol, read_squeue
from dsv3.launch.slurm.tools import clean_environment

KEY, OTHER = "0123456789ab", "ba9876543210"
NAME = f"dsv3-x-{KEY}|dsv3:{KEY}"
ROWS = f"""{HEADER}
12_0|12|0|RUNNING|None|{NAME}
12_1|12|1|PENDING|Resources|{NAME}
12_2|12|2|CANCELLED|None|{NAME}
7|7|N/A|RUNNING|None|a | name|and | comment
13_0|13|0|PENDING|launch failed requeued held|renamed by the site|dsv3:{KEY}
"""
SCONTROL = f"""JobId=12 ArrayJobId=12 ArrayTaskId=0 JobName=dsv3-{KEY} JobState=RUNNING Reason=None
JobId=14 ArrayJobId=12 ArrayTaskId=1-2,4%2 JobName=dsv3-x-{KEY} JobState=PENDING Reason=Priority
JobId=9 JobName=other one JobState=COMPLETED Reason=None Comment=mine
"""


def test_jobs_of_a_key_are_found_by_name_or_comment():
    jobs = read_squeue(ROWS, [KEY])
    assert [(j.index, j.id, j.state, j.live, j.running) for j in jobs] == [
        (0, "12_0", "RUNNING", True, True),
        (1, "12_1", "PENDING", True, False),
        (2, "12_2", "CANCELLED", False, False),
        (0, "13_0", "PENDING", True, False),
    ]
    assert str(jobs[1]) == "job 12_1 pending (Resources)"
    assert str(jobs[3]) == "job 13_0 pending (launch failed requeued held)"
    assert read_squeue(ROWS, [OTHER]) == []
    assert read_squeue(f"{HEADER}\n", [KEY]) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "<html>502 Bad Gateway</html>",
        "slurm_load_jobs error: Unable to contact slurm controller",
        ROWS.partition("\n")[2],
        ROWS.replace("RUNNING", "DREAMING"),
        f"{HEADER}\n\x00\x01\x02",
        f"{HEADER}\n12_0|12|0|RUNN",
    ],
)
def test_what_is_no_answer_of_squeue_is_not_taken_for_an_empty_one(text):
    assert read_squeue(text, [KEY]) is None


def test_scontrol_says_the_same():
    jobs = read_scontrol(SCONTROL, [KEY])
    assert [(j.index, j.id, j.state) for j in jobs] == [
        (0, "12_0", "RUNNING"),
        (1, "12_1", "PENDING"),
        (2, "12_2", "PENDING"),
        (4, "12_4", "PENDING"),
    ]
    assert read_scontrol("No jobs in the system\n", [KEY]) == []
    assert read_scontrol("JobId=1 JobState=", [KEY]) is None


def test_sacct_tells_of_jobs_that_are_gone():
    text = (
        f"12_0|TIMEOUT|{NAME}\n12_1|CANCELLED by 0|{NAME}\n12_1.batch|CANCELLED|batch|\nrubbish\n"
    )
    assert [(j.index, j.state, j.live) for j in read_sacct(text, [KEY])] == [
        (0, "TIMEOUT", False), (1, "CANCELLED", False),
    ]  # fmt: skip


def test_options_in_variables_do_not_reach_the_commands():
    given = {
        "SBATCH_ACCOUNT": "x",
        "SLURM_JOB_ID": "1",
        "SLURM_CONF": "/c",
        "SQUEUE_FORMAT": "%i",
        "A": "b",
    }
    assert clean_environment(given) == {"SLURM_CONF": "/c", "A": "b", "LC_ALL": "C.UTF-8"}


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Programs of one shell line each, and nothing else of Slurm."""
    home = tmp_path / "bin"
    home.mkdir()
    monkeypatch.setenv("PATH", f"{home}:/usr/bin:/bin")

    def put(**lines: str) -> None:
        for name, line in lines.items():
            (home / name).write_text(f"#!/bin/bash\n{line}\n")
            (home / name).chmod(stat.S_IRWXU)

    for name in ("sbatch", "squeue", "scontrol", "sacct", "scancel"):
        put(**{name: "exit 99"})
    return put


SCRIPT = Path("/") / "job.sh"


@pytest.mark.parametrize("said", ["77", "77;cluster", "sbatch: note\n78"])
def test_a_number_is_an_array(programs, said):
    programs(sbatch=f"echo '{said}'")
    assert Slurm().submit(SCRIPT, KEY) in ("77", "78")


@pytest.mark.parametrize(
    "line",
    [
        "echo 'sbatch: error: Batch job submission failed: Invalid account' >&2; exit 1",
        "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1",
        "echo \"sbatch: unrecognized option '--x'\" >&2; exit 1",
        "echo 'sbatch: error: Batch job submission failed: Job violates policy' >&2; exit 1",
    ],
)
def test_a_refusal_is_one(programs, line):
    programs(sbatch=line)
    with pytest.raises(SchedulerError) as caught:
        Slurm().submit(SCRIPT, KEY)
    assert not isinstance(caught.value, DoubtError)


@pytest.mark.parametrize(
    "line",
    [
        "echo 'Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1",
        "echo 'Batch job submission failed: Unable to contact slurm controller' >&2; exit 1",
        "echo 'Batch job submission failed: Zero Bytes were transmitted or received' >&2; exit 1",
        "echo 'Batch job submission failed: Communication connection failure' >&2; exit 1",
        "echo garbage",
        "echo",
        "echo -5",
        "exit 1",
        "kill -9 $$",
        "sleep 60",
    ],
)
def test_everything_else_is_doubt(programs, line):
    programs(sbatch=line)
    with pytest.raises(DoubtError):
        Slurm(submit_s=1.0).submit(SCRIPT, KEY)


def test_scontrol_is_asked_where_squeue_fails_and_both_have_to_make_sense(programs):
    programs(squeue="echo garbage", scontrol=f"cat <<'END'\n{SCONTROL}END")
    assert len(Slurm().jobs([KEY])) == 4
    programs(scontrol="echo garbage")
    with pytest.raises(SchedulerError, match="none of its answers"):
        Slurm().jobs([KEY])
    programs(squeue="sleep 60")
    with pytest.raises(SchedulerError, match="took too long"):
        Slurm(ask_s=0.5).jobs([KEY])


def test_an_unknown_id_is_said_and_not_guessed(programs):
    programs(scontrol="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert Slurm().knows("12") is False
    programs(scontrol="echo JobId=14 ArrayJobId=12 JobState=PENDING")
    assert Slurm().knows("12") is True
    programs(scontrol="echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(SchedulerError):
        Slurm().knows("12")


def test_without_slurm_the_way_out_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SchedulerError, match="launcher=local"):
        Slurm().jobs([KEY])


def test_a_command_dies_with_its_caller(programs, tmp_path):
    """No sbatch is left behind to hand in what somebody else asks for again."""
    import subprocess
    import sys
    import time

    programs(sbatch=f"echo $$ > {tmp_path}/pid; sleep 60; touch {tmp_path}/late")
    code = "from dsv3.launch.slurm.tools import ask; ask(['sbatch'], seconds=50)"
    caller = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.01)
    pid = int((tmp_path / "pid").read_text())
    caller.kill()
    caller.wait()
    for _ in range(500):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text():
            return
        time.sleep(0.01)
    os.kill(pid, 9)
    pytest.fail("sbatch outlived the command that started it")
