"""What the test cluster says of its jobs: one row for each job, or each task of an array."""

import re
from dataclasses import dataclass

SEPARATOR = "\x1f"
FIELDS = {
    "id": "%i",
    "name": "%j",
    "comment": "%k",
    "state": "%T",
    "reason": "%r",
    "partition": "%P",
    "nodes": "%N",
    "array": "%F",
    "task": "%K",
}
FORMAT = SEPARATOR.join(FIELDS.values())
ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"}
    | {"PREEMPTED", "TIMEOUT"}
)


@dataclass(frozen=True)
class Job:
    """A job as `squeue` shows it; `array` is the id that sbatch said, `task` its index if any."""

    id: str
    name: str
    comment: str
    state: str
    reason: str
    partition: str
    nodes: str
    array: str
    task: int | None

    @property
    def ended(self) -> bool:
        """Whether it will not run again by itself."""
        return self.state in ENDED


def parse(listing: str) -> list[Job]:
    """The rows of `squeue -h -r -o FORMAT`; a comment of several lines is not expected."""
    jobs = []
    for line in listing.splitlines():
        values = dict(zip(FIELDS, line.split(SEPARATOR), strict=True))
        task = values.pop("task")
        jobs.append(Job(**values, task=int(task) if task.isdecimal() else None))
    return sorted(jobs, key=lambda job: (int(job.array), job.task or 0))


def details(line: str) -> dict[str, str]:
    """The `Key=value` pairs of a line of `scontrol show job -o`."""
    return dict(re.findall(r"(?:^| )([A-Z]\w*(?::\w+)?)=(.*?)(?= [A-Z]\w*(?::\w+)?=|$)", line))
