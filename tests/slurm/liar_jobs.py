"""The jobs a lying scheduler has truly accepted, and what its programs print of them.

Texts and layouts are those of Slurm 22.05; `test_liar_and_slurm.py` compares them with a real one.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from slurm.jobs import ENDED
from slurm.liar_options import Options, ranges

SHORT = {
    "PENDING": "PD", "RUNNING": "R", "COMPLETED": "CD", "CANCELLED": "CA", "FAILED": "F",
    "TIMEOUT": "TO", "NODE_FAIL": "NF", "COMPLETING": "CG", "PREEMPTED": "PR",
}  # fmt: skip
NULL = "(null)"
NOW = "2026-01-02T03:04:05"


@dataclass
class Task:
    """One task of an array, or the only one of a job that is none."""

    raw_id: int
    index: int | None
    state: str = "PENDING"
    reason: str = "None"
    node: str = ""
    restarts: int = 0
    exit_code: str = "0:0"


@dataclass
class Accepted:
    """One accepted submission: a job, or an array."""

    id: int
    name: str
    comment: str
    script: str
    arguments: list[str]
    options: Options
    directory: str
    environment: Options
    tasks: list[Task]
    at: float = field(default_factory=time.monotonic)
    # Look-ups that will not show it yet; it left the controller's memory; only sacct knows it then.
    hidden_looks: int = 0
    hidden_until: float = 0.0
    purged: bool = False

    @property
    def is_array(self) -> bool:
        """Whether it was submitted with --array."""
        return self.tasks[0].index is not None

    @property
    def throttle(self) -> str:
        """`%4` of an array of which four may run at once."""
        found = re.search(r"%\d+", self.options.get("array", ""))
        return found[0] if found else ""

    @property
    def partition(self) -> str:
        """Where it was submitted to."""
        return self.options.get("partition", "normal")

    def rows(self, *, expanded: bool) -> Iterator["Row"]:
        """Tasks, with those that wait as one unless `expanded`."""
        waiting = [task for task in self.tasks if task.state == "PENDING"]
        together = self.is_array and not expanded and len(waiting) > 1
        if together:
            spec = ranges([task.index or 0 for task in waiting]) + self.throttle
            yield Row(self, waiting[0], f"{self.id}_[{spec}]", spec)
        for task in self.tasks:
            if not (together and task.state == "PENDING"):
                index = "N/A" if task.index is None else str(task.index)
                name = str(self.id) if task.index is None else f"{self.id}_{index}"
                yield Row(self, task, name, index)


@dataclass
class Row:
    """One line of squeue, scontrol or sacct."""

    job: Accepted
    task: Task
    id: str
    index: str


def _where(row: Row) -> str:
    return row.task.node or f"({row.task.reason})"


SQUEUE_FIELDS: dict[str, tuple[str, Callable[[Row], str]]] = {
    "i": ("JOBID", lambda row: row.id),
    "A": ("JOBID", lambda row: str(row.task.raw_id)),
    "F": ("ARRAY_JOB_ID", lambda row: str(row.job.id)),
    "K": ("ARRAY_TASK_ID", lambda row: row.index),
    "j": ("NAME", lambda row: row.job.name),
    "k": ("COMMENT", lambda row: row.job.comment),
    "T": ("STATE", lambda row: row.task.state),
    "t": ("ST", lambda row: SHORT[row.task.state]),
    "r": ("REASON", lambda row: row.task.reason),
    "R": ("NODELIST(REASON)", _where),
    "N": ("NODELIST", lambda row: row.task.node),
    "P": ("PARTITION", lambda row: row.job.partition),
    "D": ("NODES", lambda row: row.job.options.get("nodes", "1")),
    "u": ("USER", lambda row: "root"),
    "M": ("TIME", lambda row: "0:00"),
    "l": ("TIME_LIMIT", lambda row: row.job.options.get("time", "UNLIMITED")),
    "L": ("TIME_LEFT", lambda row: row.job.options.get("time", "UNLIMITED")),
    "V": ("SUBMIT_TIME", lambda row: NOW),
    "S": ("START_TIME", lambda row: NOW if row.task.node else "N/A"),
    "e": ("END_TIME", lambda row: NOW if row.task.state in ENDED else "N/A"),
    "a": ("ACCOUNT", lambda row: row.job.options.get("account", NULL)),
    "q": ("QOS", lambda row: row.job.options.get("qos", NULL)),
    "Z": ("WORK_DIR", lambda row: row.job.directory),
    "Q": ("PRIORITY", lambda row: "4294901758"),
}
SQUEUE_DEFAULT = "%.18i %.9P %.8j %.8u %.2t %.10M %.6D %R"
LONG_NAMES = {
    "jobid": "A", "jobarrayid": "i", "name": "j", "comment": "k", "state": "T", "arrayjobid": "F",
    "arraytaskid": "K", "reason": "r", "nodelist": "N", "partition": "P", "username": "u",
    "reasonlist": "R",
}  # fmt: skip


def squeue_lines(rows: list[Row], text: str, *, header: bool) -> list[str]:
    """Lines of `squeue -o`; a specification that Slurm lacks prints as Slurm does: nothing."""

    def line(value: Callable[[str], str]) -> str:
        def fill(match: re.Match[str]) -> str:
            right, width, letter = match.groups()
            if letter not in SQUEUE_FIELDS:
                return ""
            shown = value(letter)
            if not width:
                return shown
            shown = shown[: int(width)]
            return shown.rjust(int(width)) if right else shown.ljust(int(width))

        return re.sub(r"%(\.)?(\d+)?([A-Za-z])", fill, text)

    lines = [line(lambda letter: SQUEUE_FIELDS[letter][0])] if header else []
    return lines + [
        line(lambda letter, row=row: SQUEUE_FIELDS[letter][1](row))  # type: ignore[misc]
        for row in rows
    ]


def long_format(text: str) -> str:
    """`-o` for what `-O` says: fields of 20 characters unless it says more."""
    parts = []
    for each in text.split(","):
        name, _, width = each.partition(":")
        parts.append(f"%{width.strip('.') or 20}{LONG_NAMES[name.lower()]}")
    return "".join(parts)


def scontrol_line(row: Row, *, one_line: bool) -> str:
    """A job as `scontrol show job` prints it."""
    job, task = row.job, row.task
    array = ""
    if job.is_array:
        throttle = f" ArrayTaskThrottle={job.throttle[1:]}" if job.throttle else ""
        array = f" ArrayJobId={job.id} ArrayTaskId={row.index}{throttle}"
    output = job.options.get("output", f"{job.directory}/slurm-{row.id}.out")
    groups = [
        f"JobId={task.raw_id}{array} JobName={job.name}",
        "UserId=root(0) GroupId=root(0) MCS_label=N/A",
        f"Priority=4294901759 Nice=0 Account={job.options.get('account', NULL)} QOS={NULL}",
        f"JobState={task.state} Reason={task.reason} Dependency={NULL}",
        f"Requeue=1 Restarts={task.restarts} BatchFlag=1 Reboot=0 ExitCode={task.exit_code}",
        f"RunTime=00:00:00 TimeLimit={job.options.get('time', 'UNLIMITED')} TimeMin=N/A",
        f"SubmitTime={NOW} EligibleTime={NOW}",
        "AccrueTime=Unknown",
        f"StartTime={NOW} EndTime=Unknown Deadline=N/A",
        "SuspendTime=None SecsPreSuspend=0 LastSchedEval=Unknown Scheduler=Backfill",
        f"Partition={job.partition} AllocNode:Sid=localhost:1",
        "ReqNodeList=(null) ExcNodeList=(null)",
        f"NodeList={task.node}",
        *([f"BatchHost={task.node}"] if task.node else []),
        f"NumNodes={job.options.get('nodes', '1')} NumCPUs=1 NumTasks=1 CPUs/Task=1 "
        "ReqB:S:C:T=0:0:*:*",
        f"Features={job.options.get('constraint', NULL)} DelayBoot=00:00:00",
        f"Command={job.arguments[-1] if job.arguments else NULL}",
        f"WorkDir={job.directory}",
        *([f"Comment={job.comment} "] if job.comment not in ("", NULL) else []),
        f"StdErr={output}",
        "StdIn=/dev/null",
        f"StdOut={output}",
        "Power=",
    ]
    return " ".join(groups) + " " if one_line else "\n   ".join(groups) + "\n   \n"


SACCT_FIELDS: dict[str, tuple[str, int, Callable[[Row], str]]] = {
    "jobid": ("JobID", 12, lambda row: row.id),
    "jobidraw": ("JobIDRaw", 12, lambda row: str(row.task.raw_id)),
    "jobname": ("JobName", 10, lambda row: row.job.name),
    "partition": ("Partition", 10, lambda row: row.job.partition),
    "account": ("Account", 10, lambda row: row.job.options.get("account", "")),
    "alloccpus": ("AllocCPUS", 10, lambda row: "1"),
    "state": ("State", 10, lambda row: _accounted(row.task.state)),
    "exitcode": ("ExitCode", 8, lambda row: row.task.exit_code),
    "nodelist": ("NodeList", 15, lambda row: row.task.node or "None assigned"),
    "submit": ("Submit", 19, lambda row: NOW),
    "start": ("Start", 19, lambda row: NOW if row.task.node else "Unknown"),
    "end": ("End", 19, lambda row: NOW if row.task.state in ENDED else "Unknown"),
    "elapsed": ("Elapsed", 10, lambda row: "00:00:00"),
    "comment": ("Comment", 14, lambda row: row.job.comment),
    "workdir": ("WorkDir", 20, lambda row: row.job.directory),
    "user": ("User", 9, lambda row: "root"),
}
SACCT_DEFAULT = "jobid,jobname,partition,account,alloccpus,state,exitcode"


def _accounted(state: str) -> str:
    return "CANCELLED by 0" if state == "CANCELLED" else state


def sacct_lines(rows: list[Row], options: Options) -> list[str]:
    """Lines of sacct.

    Raises:
        KeyError: a field that it does not have.
    """
    names = [each.split("%")[0].lower() for each in options.get("format", SACCT_DEFAULT).split(",")]
    fields = [SACCT_FIELDS[name] for name in names]
    values = [[value(row) for _, _, value in fields] for row in rows]
    titles = [title for title, _, _ in fields]
    table = values if "noheader" in options else [titles, *values]
    delimiter = options.get("delimiter", "|")
    if "parsable2" in options:
        return [delimiter.join(line) for line in table]
    if "parsable" in options:
        return ["".join(value + delimiter for value in line) for line in table]
    if "noheader" not in options:
        table.insert(1, ["-" * width for _, width, _ in fields])
    widths = [width for _, width, _ in fields]
    return [
        "".join(f"{value[:width]:>{width}} " for value, width in zip(line, widths, strict=True))
        for line in table
    ]
