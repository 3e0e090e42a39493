"""`launcher`: where the ranks are started."""

from typing import Literal

from dsv3.config.section import Section, field


class LauncherConfig(Section):
    """What starts the ranks; nothing here changes what is computed."""

    kind: Literal["local"] = field("`local`: on this machine.")
    device: Literal["auto", "cpu", "cuda"] = field("`auto`: CUDA where there is a GPU, else CPU.")
    threads_per_rank: int | None = field(
        "CPU threads of each rank; null: the cores shared out over the ranks.", gt=0
    )
    parallel: int | None = field(
        "Runs of a sweep side by side, each with as many threads as alone; null: as many as fit"
        " (cores over ranks x threads, GPUs over ranks). With threads_per_rank=null that is one.",
        gt=0,
    )
    keep_memory: bool = field("CPU: keep freed memory instead of returning it to the kernel.")
    compile: bool = field("Fuse element-wise work with torch.compile; needs a C++ compiler.")
