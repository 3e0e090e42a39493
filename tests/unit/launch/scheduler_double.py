"""A scheduler in memory that lies as it is told to; what it really has is in `arrays`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dsv3.config.root import RunConfig
from dsv3.errors import Problem
from dsv3.launch.launcher import Array, ClusterLauncher
from dsv3.launch.scheduler import DoubtError, Job, SchedulerError
from dsv3.launch.submission import Submission


@dataclass
class Double:
    """`lies` are taken one for each call of `submit`, `hidden` answers of `jobs` show nothing."""

    name: str = "Double"
    lies: list[str] = field(default_factory=list)
    blind: int = 0
    deaf: int = 0
    arrays: dict[str, str] = field(default_factory=dict)  # id -> key
    states: dict[tuple[str, int], str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def submit(self, script: Path, key: str) -> str:
        self.calls.append("submit")
        lie = self.lies.pop(0) if self.lies else "truth"
        if lie == "refuse":
            raise SchedulerError(Problem("sbatch", "invalid partition"))
        if lie != "lose":
            number = str(100 + len(self.arrays))
            self.arrays[number] = key
            self.sizes[key] = len(Submission(script.parent).intent().runs)
        if lie in ("lose", "take in silence"):
            raise DoubtError(Problem("sbatch", "Socket timed out"))
        if lie == "take and refuse":
            raise SchedulerError(Problem("sbatch", "invalid, or so it says"))
        return number

    def jobs(self, keys):
        self.calls.append("jobs")
        if self.deaf:
            self.deaf -= 1
            raise SchedulerError(Problem("squeue", "garbage"))
        if self.blind:
            self.blind -= 1
            return []
        found = []
        for number, key in self.arrays.items():
            for index in range(self.sizes[key]) if key in keys else ():
                state = self.states.get((key, index), "PENDING")
                live = state in ("PENDING", "RUNNING")
                found.append(
                    Job(
                        key,
                        index,
                        f"{number}_{index}",
                        state,
                        live=live,
                        running=state == "RUNNING",
                    )
                )
        return found

    def past(self, keys):
        return []

    def knows(self, array):
        return array in self.arrays

    def verdict(self, script):
        return "fine"

    def cancel(self, ids):
        self.calls.append(f"cancel {sorted(ids)}")

    def ask_to_save(self, ids):
        self.calls.append(f"save {sorted(ids)}")

    def forget(self) -> None:
        """Lose everything."""
        self.arrays.clear()


class DoubleLauncher(ClusterLauncher):
    """All runs make one array."""

    profile = "double"

    def __init__(self, scheduler: Double) -> None:
        self.scheduler = scheduler

    def refuse(self, config: RunConfig) -> None:
        pass

    def threads_per_rank(self, config: RunConfig) -> int:
        return 1

    def arrays(self, configs: Sequence[RunConfig], name: str) -> list[Array]:
        script: Callable[[str, Path], str] = lambda key, _path: f"# {key}\n"  # noqa: E731
        return [Array(tuple(range(len(configs))), script)] if configs else []
