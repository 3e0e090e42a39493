"""The part of `dsv3 train` between frozen runs and the job id, as a command: RUN_DIR ..."""

import sys
from pathlib import Path

from dsv3.errors import Dsv3Error
from dsv3.launch.handing import hand_in_runs
from dsv3.launch.slurm.commands import Slurm
from dsv3.launch.slurm.launcher import SlurmLauncher
from dsv3.launch.slurm.profile import load_profile
from dsv3.launch.submit import Patience
from dsv3.runs.directory import RunDirectory

SETTLE_S = 0.2


def main() -> int:
    runs = [RunDirectory(Path(word)) for word in sys.argv[1:]]
    launcher = SlurmLauncher("test", load_profile("test"), None, Slurm())
    pairs = [(run, run.config()) for run in runs]
    try:
        handed = hand_in_runs(
            launcher, pairs, name="x", retry=False, patience=Patience(settle_s=SETTLE_S)
        )
    except Dsv3Error as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(*(f"{each.outcome} {each.job}" for each in handed), sep="\n")
    return 0
