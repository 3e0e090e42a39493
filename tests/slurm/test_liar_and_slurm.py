"""The liar prints what a real Slurm prints: the same commands to both, line by line."""

import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from slurm.lying_scheduler import LyingScheduler

pytestmark = pytest.mark.slurm

NAME, COMMENT = "two words", "key=1 $x"
COMMANDS = [
    ["sbatch", "--hold", f"--job-name={NAME}", f"--comment={COMMENT}", "--array=0-3%2", "job.sh"],
    ["sbatch", "--parsable", "--hold", "job.sh"],
    ["sbatch", "--wrap=true", "--hold"],
    ["squeue", "-h", "-o", "%j|%k|%T|%P|%K|%D|%u"],
    ["squeue", "-h", "-r", "-o", "%j|%k|%t|%P|%K|%D|%u"],
    ["squeue", "-o", "%i|%j|%k|%T|%r|%P|%N|%F|%K|%D|%u|%a|%V", "-n", "none of them"],
    ["squeue", "-h", "-n", NAME, "-o", "%.5j|%12j|%.12j"],
    ["squeue", "-j", "4711"],
    ["squeue", "--foo"],
    ["scontrol", "show", "job", "4711"],
    ["scontrol", "requeue", "4711"],
    ["scontrol", "show", "hostnames", "a[1-3],b[08-10],c"],
    ["scancel", "4711"],
    ["scancel", "abc"],
    ["sacct", "-n", "-j", "1"],
    ["sbatch", "--partition=nope", "job.sh"],
    ["sbatch", "--foo", "job.sh"],
    ["sbatch", "--array=0-2000", "job.sh"],
    ["sbatch", "missing.sh"],
    ["sbatch", "bare.sh"],
    ["sbatch", f"--comment={'y' * 2000}", "job.sh"],
    ["sbatch", "--version"],
]
AWAY = [
    ["sbatch", "job.sh"],
    ["squeue", "-h"],
    ["scontrol", "show", "job", "-o"],
    ["sinfo"],
    ["scontrol", "ping"],
]


@pytest.fixture
def both(cluster, tmp_path):
    """A way to run a command on each: exit code and output, without numbers."""
    liar = LyingScheduler(tmp_path).start()
    (tmp_path / "job.sh").write_text("#!/bin/sh\ntrue\n")
    (tmp_path / "bare.sh").write_text("true\n")

    def run(command: list[str]) -> list[tuple[int, str, str]]:
        told = []
        for env in (None, {"PATH": liar.path(os.environ["PATH"])}):
            options = {"cwd": tmp_path} | ({"env": env} if env else {})
            done = cluster.run(*command, **options)
            output = "".join(sorted(done.stdout.splitlines(keepends=True)))  # real: by priority
            texts = (re.sub(r"\b(?:job|^)\d+", "N", text) for text in (output, done.stderr))
            told.append((done.returncode, *(re.sub(r"\b\d+$", "N", each) for each in texts)))
        return told

    run.liar = liar
    yield run
    liar.close()


def test_the_same_words_and_exit_codes(both):
    differ = {}
    for command in COMMANDS:
        real, liar = both(command)
        if real != liar:
            differ[" ".join(command)] = (real, liar)
    assert not differ


def test_the_same_words_when_the_controller_is_away(both, cluster):
    cluster.stop_controller()
    both.liar.away(len(AWAY))
    with ThreadPoolExecutor(len(AWAY)) as pool:  # the real ones try for seconds
        told = list(pool.map(both, AWAY))
    for command, (real, liar) in zip(AWAY, told, strict=True):
        if "ping" in command:
            assert "is DOWN" in real[1]
            assert "is DOWN" in liar[1]
        else:
            assert real == liar
