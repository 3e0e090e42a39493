"""The liar lies as told, its record is the truth, and its programs print what Slurm's print."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from slurm.liar_client import escaped
from slurm.lying_scheduler import EVERY_LIE, GARBAGE, Lie, Lies, LyingScheduler

SCRIPT = """#!/bin/bash
# A comment, and #SBATCH lines after it.
#SBATCH --job-name="two words"
#SBATCH --comment='key=1 x'
#SBATCH --array=0-3%2 # of four

true
#SBATCH --job-name=too-late
"""


def call(liar: LyingScheduler, *command: str, **options) -> subprocess.CompletedProcess[bytes]:
    env = {"PATH": liar.path(os.environ["PATH"]), **options.pop("env", {})}
    return subprocess.run(command, env=env, cwd=liar.directory, capture_output=True, **options)


def submit(liar: LyingScheduler, *arguments: str, **options) -> subprocess.CompletedProcess[bytes]:
    (liar.directory / "job.sh").write_text(SCRIPT)
    return call(liar, "sbatch", "--parsable", *arguments, "job.sh", "hostile ; $(arg)\n", **options)


def squeue(liar: LyingScheduler, text: str = "%i|%j|%k|%T", *more: str) -> list[str]:
    done = call(liar, "squeue", "-h", "-o", text, *more)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().splitlines()


def test_what_it_accepts_is_on_record_and_in_the_queue(liar):
    done = submit(liar, "--partition=high", env={"SBATCH_ACCOUNT": "abc"})
    assert (done.returncode, done.stdout, done.stderr) == (0, b"100\n", b"")
    [job] = liar.accepted
    assert (job.name, job.comment, job.script) == ("two words", "key=1 x", SCRIPT)
    assert [task.index for task in job.tasks] == [0, 1, 2, 3]
    assert job.options["partition"] == "high"
    assert job.options["account"] == "abc"
    assert job.arguments == ["job.sh", "hostile ; $(arg)\n"]
    assert squeue(liar) == ["100_[0-3%2]|two words|key=1 x|PENDING"]
    liar.move("RUNNING", job=100, index=1)
    shown = ["100_[0,2-3%2]|two words|key=1 x|PENDING", "100_1|two words|key=1 x|RUNNING"]
    assert squeue(liar) == shown
    assert squeue(liar, "%A_%K %r", "-r", "-t", "PD") == [f"{100 + k}_{k} None" for k in (0, 2, 3)]
    assert (liar.directory / "accepted.jsonl").read_text().count("\n") == 1


def test_the_command_line_goes_over_variables_and_these_over_the_script(liar):
    submit(liar, env={"SBATCH_JOB_NAME": "variable"})
    submit(liar, "--job-name=line", env={"SBATCH_JOB_NAME": "variable"})
    assert [job.name for job in liar.accepted] == ["variable", "line"]


def test_a_script_may_come_by_standard_input(liar):
    assert call(liar, "sbatch", input=SCRIPT.encode()).stdout == b"Submitted batch job 100\n"
    assert liar.accepted[0].script == SCRIPT
    assert call(liar, "sbatch", "--wrap=a b").returncode == 0
    assert liar.accepted[1].script.endswith("\na b\n")


@pytest.mark.parametrize(
    ("lie", "accepts", "code", "output", "error"),
    [
        (Lie.ACCEPT_TIMEOUT, True, 1, b"", b"failed: Socket timed out on send/recv operation\n"),
        (Lie.ACCEPT_SILENT, True, 0, b"", b""),
        (Lie.REFUSE, False, 1, b"", b"sbatch: error: Batch job submission failed: "),
        (Lie.REFUSE_SILENT, False, 1, b"", b""),
        (Lie.TIMEOUT, False, 1, b"", b"failed: Socket timed out on send/recv operation\n"),
        (Lie.UNREACHABLE, False, 1, b"", b"slurm controller (connect failure)\n"),
    ],
)
def test_each_lie_of_a_submission(liar, lie, accepts, code, output, error):
    liar.will("sbatch", lie)
    done = submit(liar)
    assert (done.returncode, done.stdout) == (code, output)
    assert error in done.stderr
    assert len(liar.accepted) == accepts
    assert liar.calls[-1].lie is lie
    assert submit(liar).returncode == 0, "one call, and chance again"


@pytest.mark.parametrize(("lie", "accepts"), [(Lie.ACCEPT_GARBAGE, True), (Lie.GARBAGE, False)])
def test_garbage_arrives_as_it_is(liar, lie, accepts):
    seen = set()
    for number in range(40):
        liar.will("sbatch", lie)
        done = submit(liar)
        assert done.returncode == 0
        assert done.stdout in GARBAGE
        assert len(liar.accepted) == (number + 1 if accepts else 0)
        seen.add(done.stdout)
    assert seen == set(GARBAGE)


@pytest.mark.parametrize(("lie", "accepts"), [(Lie.ACCEPT_HANG, True), (Lie.HANG, False)])
def test_a_call_that_hangs_ends_when_it_is_killed(liar, lie, accepts):
    liar.will("sbatch", lie)
    with pytest.raises(subprocess.TimeoutExpired):
        submit(liar, timeout=2)  # time to get there on a busy machine too
    assert len(liar.accepted) == accepts
    assert liar.calls[-1].code is None
    assert len(squeue(liar)) == accepts, "others are answered meanwhile"


def test_a_submission_counts_though_the_caller_is_killed(liar):
    (liar.directory / "job.sh").write_text(SCRIPT)
    liar.will("sbatch", Lie.ACCEPT_HANG)
    program = f"import subprocess; subprocess.run(['{liar.programs}/sbatch', 'job.sh'])"
    caller = subprocess.Popen([sys.executable, "-c", program], cwd=liar.directory)
    until = time.monotonic() + 10
    while not liar.accepted and time.monotonic() < until:
        time.sleep(0.01)
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    assert len(liar.accepted) == 1


def test_a_forgotten_job_comes_back_after_some_looks(tmp_path):
    liar = LyingScheduler(tmp_path, Lies(seed=1, forget=1.0, forget_looks=3)).start()
    try:
        submit(liar)
        hidden = liar.accepted[0].hidden_looks
        assert 1 <= hidden <= 3
        seen = [len(squeue(liar)) for _ in range(4)]
        assert seen == [0] * hidden + [1] * (4 - hidden)
        submit(liar)
        liar.honest()
        assert len(squeue(liar)) == 2
    finally:
        liar.close()


def test_a_controller_is_away_for_as_many_calls_as_said(liar):
    liar.away(3)
    assert submit(liar).returncode == 1
    queue = call(liar, "squeue")
    assert queue.returncode == 1
    assert queue.stderr == (
        b"slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"
    )
    assert b"is DOWN" in call(liar, "scontrol", "ping").stdout
    assert b"is UP" in call(liar, "scontrol", "ping").stdout
    assert liar.accepted == []


def test_a_job_that_left_the_memory_is_known_to_sacct_alone(liar):
    submit(liar, "--job-name=key")
    liar.move("COMPLETED")
    liar.purge()
    assert squeue(liar, "%i", "-t", "all") == []
    asked = call(liar, "scontrol", "show", "job", "-o", "100")
    assert asked.returncode == 1
    assert asked.stderr == b"slurm_load_jobs error: Invalid job id specified\n"
    sacct = ["sacct", "-n", "-X", "-P", "--name=key", "-o", "JobID,State"]
    off = call(liar, *sacct)
    assert (off.returncode, off.stderr) == (1, b"Slurm accounting storage is disabled\n")
    liar.accounting = True
    said = call(liar, *sacct).stdout.decode().splitlines()
    assert said == [f"100_{index}|COMPLETED" for index in range(4)]


def test_scancel_and_requeue_change_tasks(liar):
    submit(liar)
    liar.move("RUNNING")
    assert call(liar, "scontrol", "requeue", "100_1").returncode == 0
    assert call(liar, "scancel", "100_2").returncode == 0
    assert squeue(liar, "%K %T", "-r", "-t", "all") == [
        "0 RUNNING", "1 PENDING", "2 CANCELLED", "3 RUNNING"
    ]  # fmt: skip
    line = call(liar, "scontrol", "show", "job", "-o", "100_1").stdout.decode()
    assert " Restarts=1 " in line
    assert " Comment=key=1 x  StdErr" in line
    assert liar.count(lambda job: job.comment) == Counter({"key=1 x": 1})
    call(liar, "scancel", "100")
    assert liar.count(lambda job: job.comment) == Counter()


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["--foo"], 255, "sbatch: unrecognized option '--foo'"),
        (["--partition=nope"], 1, "failed: Invalid partition name specified"),
        (["--array=0-2000"], 1, "failed: Invalid job array specification"),
    ],
)
def test_an_invalid_submission_is_refused_in_slurms_words(liar, arguments, code, error):
    liar.will("sbatch", Lie.ACCEPT_SILENT)
    done = submit(liar, *arguments)
    assert done.returncode == code
    assert error in done.stderr.decode()
    assert liar.accepted == []


def test_a_dry_run_accepts_nothing(liar):
    done = submit(liar, "--test-only")
    assert done.returncode == 0
    assert done.stderr.startswith(b"sbatch: Job 100 to start at ")
    assert liar.accepted == []


def test_every_byte_survives_the_way_to_the_program(liar):
    data = bytes(range(256))
    done = subprocess.run(["bash", "-c", 'printf %b "$0"', escaped(data)], capture_output=True)
    assert done.stdout == data


def test_hundreds_of_calls_with_every_lie_are_the_same_for_one_seed(tmp_path):
    """And quick: a test that needs minutes for its submissions is not run."""
    told = []
    for attempt in ("a", "b"):
        directory = tmp_path / attempt
        directory.mkdir()
        lies = Lies(seed=7, truth=2.0, weights=EVERY_LIE, forget=0.5, slow_s=0.001)
        liar = LyingScheduler(directory, lies).start()
        try:
            codes = [submit(liar).returncode for _ in range(150)]
        finally:
            liar.close()
        told.append((codes, [each.lie for each in liar.calls], len(liar.accepted)))
    assert told[0] == told[1]
    assert set(told[0][1]) == {Lie.TRUTH, *EVERY_LIE}
    assert 0 < told[0][2] < 150
