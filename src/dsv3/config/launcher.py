"""`launcher`: where the ranks are started."""

from typing import Literal

from dsv3.config.section import Section, field

TIME_LIMIT = r"\d+|(\d+-)?\d+:\d\d(:\d\d)?|\d+-\d+"
"""A time limit as Slurm takes it: minutes, minutes:seconds, hours:minutes:seconds, with days."""


class LauncherConfig(Section):
    """What starts the ranks; nothing here changes what is computed."""

    kind: Literal["local", "slurm"] = field(
        "`local`: on this machine, waiting for them. `slurm`: as jobs of a cluster, one array for"
        " all runs of a command that ask for the same nodes; the command returns at once."
    )
    device: Literal["auto", "cpu", "cuda"] = field("`auto`: CUDA where there is a GPU, else CPU.")
    threads_per_rank: int | None = field(
        "CPU threads of each rank; null: the cores shared out over the ranks.", gt=0
    )
    parallel: int | None = field(
        "Runs of a sweep side by side, each with as many threads as alone; null: as many as fit"
        " (cores over ranks x threads, GPUs over ranks). With threads_per_rank=null that is one."
        " Slurm: at most so many jobs of the array at a time; null: as the cluster has room.",
        gt=0,
    )
    keep_memory: bool = field("CPU: keep freed memory instead of returning it to the kernel.")
    compile: bool = field("Fuse element-wise work with torch.compile; needs a C++ compiler.")
    profile: str | None = field(
        "Slurm: the cluster, a file launchers/profiles/NAME.yaml of --config-dir or shipped. It"
        " says account, partition and what a node has; nodes and tasks follow from the layout.",
        min_length=1,
    )
    time: str | None = field(
        "Slurm: time limit of one job, as in 4:00:00 or 2-00:00:00; a run goes on in the next job."
        " null: the profile's.",
        min_length=1,
    )
    ranks_by: Literal["srun", "torchrun"] = field(
        "Slurm: `srun` starts every rank as a task of its own; `torchrun` is started once per node"
        " and starts the ranks, which then have 30 s to save when the job is told to end."
    )
    save_seconds: int = field(
        "Slurm: so long before its time limit a job is told to save and ask for another one. It"
        " may come a minute earlier.",
        ge=10,
        le=65535,
    )
    fruitless_starts: int = field(
        "Slurm: a run that was started so often in a row without a new checkpoint is given up.",
        gt=0,
    )
