"""Where no Slurm can be had, the tests say so and fail; only a word of the user leaves them out."""

import os
import subprocess
import sys

import pytest

from slurm import packages
from slurm.packages import MissingProgramError, ensure


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine with none of the programs."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(packages, "SBIN", str(tmp_path))
    return tmp_path


def test_without_root_or_apt_the_error_names_the_packages(bare):
    with pytest.raises(MissingProgramError, match="need munge slurm-wlm; install it, or run as"):
        ensure("munged", "slurmctld", "sbatch")


def test_a_failing_installation_is_told_in_its_own_words(bare, monkeypatch):
    apt = bare / "apt-get"
    apt.write_text("#!/bin/sh\necho E: no network >&2\nexit 100\n")
    apt.chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(MissingProgramError, match="apt-get update failed:\nE: no network"):
        ensure("slurmd")


def test_what_is_there_is_not_installed(bare):
    program = bare / "slurmd"
    program.write_text("")
    program.chmod(0o755)
    ensure("slurmd")


@pytest.mark.parametrize(("word", "outcome"), [("skip", "1 skipped"), ("off", "1 error")])
def test_one_word_leaves_the_tests_out_and_any_other_fails(checkout, word, outcome):
    test = "tests/slurm/test_cluster.py::test_waiting_for_what_never_comes_fails_with_evidence"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "slurm", "-p", "no:cacheprovider", test],
        cwd=checkout,
        env={**os.environ, "DSV3_SLURM_TESTS": word},
        capture_output=True,
        text=True,
    )
    assert outcome in done.stdout.splitlines()[-1], done.stdout
    assert word in done.stdout
