"""Programs of the system that these tests need, installed where they are missing.

Continuous integration begins on a bare machine, so the tests fetch what they run against. Only
Debian's own packages, and only as root; anywhere else the error says what to install.
"""

import os
import shutil
import subprocess

# By program: the package of Debian and Ubuntu that brings it.
PACKAGES = {
    "munged": "munge",
    "sbatch": "slurm-wlm",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "shellcheck": "shellcheck",
}
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


class MissingProgramError(RuntimeError):
    """A program that a test cannot do without, and cannot get."""


def search_path() -> str:
    """PATH with the directories of daemons, which a user's often lacks."""
    return f"{os.environ.get('PATH', os.defpath)}:{SBIN}"


def ensure(*programs: str) -> None:
    """Install the packages of those programs that are not there.

    Raises:
        MissingProgramError: not root, no apt-get, or the installation failed; says what it said.
    """
    missing = sorted({PACKAGES[each] for each in programs if _absent(each)})
    if not missing:
        return
    wanted = f"these tests need {' '.join(missing)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise MissingProgramError(
            f"{wanted}; install it, or run as root on Debian or Ubuntu, where the tests do"
        )
    for command in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
        done = subprocess.run(
            ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=120", *command],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            said = (done.stdout + done.stderr)[-2000:]
            raise MissingProgramError(f"{wanted}; apt-get {command[0]} failed:\n{said}")
    if still := [each for each in programs if _absent(each)]:
        raise MissingProgramError(f"{wanted}; installed, but {' '.join(still)} is not on PATH")


def _absent(program: str) -> bool:
    return shutil.which(program, path=search_path()) is None
