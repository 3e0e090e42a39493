"""What squeue, scontrol and sacct print, read with care: it may be garbage."""

import re
from collections.abc import Collection, Iterator

from dsv3.launch.scheduler import Job

COMMENT = "dsv3:"
"""Begins the comment of our jobs; the key follows."""
FORMAT = "%i|%F|%K|%T|%r|%j|%k"
HEADER = "JOBID|ARRAY_JOB_ID|ARRAY_TASK_ID|STATE|REASON|NAME|COMMENT"
"""What squeue prints first for FORMAT: an answer without it is none."""
LIVE = frozenset(
    [
        "PENDING",
        "RUNNING",
        "SUSPENDED",
        "COMPLETING",
        "CONFIGURING",
        "REQUEUED",
        "REQUEUE_HOLD",
        "REQUEUE_FED",
        "RESIZING",
        "SIGNALING",
        "STAGE_OUT",
        "STOPPED",
        "RESV_DEL_HOLD",
        "SPECIAL_EXIT",
        "POWER_UP_NODE",
    ]
)
OVER = frozenset(
    [
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
        "LAUNCH_FAILED",
        "RECONFIG_FAIL",
    ]
)
RUNNING = frozenset(["RUNNING", "COMPLETING", "CONFIGURING", "SIGNALING", "STAGE_OUT", "SUSPENDED"])
_LINE = re.compile(r"(?P<id>\d+\S*?)\|(?P<array>\d+)\|(?P<index>[^|]*)\|(?P<state>[A-Z_]+)\|")
_PAIR = re.compile(r"(\w+)=(\S*)")


def job_name(name: str, key: str) -> str:
    """Name of an array: what people look for, and the key that is searched for."""
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:40].strip("-.")
    return f"dsv3-{readable}-{key}" if readable else f"dsv3-{key}"


def read_squeue(text: str, keys: Collection[str]) -> list[Job] | None:
    """The jobs of these keys in the answer to FORMAT; None if that is no answer of squeue."""
    header, *lines = text.splitlines() or [""]
    if header.strip() != HEADER:
        return None
    jobs: list[Job] = []
    for line in lines:
        match = _LINE.match(line)
        if match is None or match["state"] not in LIVE | OVER:
            if not line.strip():
                continue
            return None
        reason, _, names = line[match.end() :].partition("|")
        jobs += _ours(keys, names, match["id"], match["index"], match["state"], reason)
    return jobs


def read_scontrol(text: str, keys: Collection[str]) -> list[Job] | None:
    """The same from `scontrol show job --oneliner`; None if that is no answer of it."""
    jobs: list[Job] = []
    lines = [line for line in text.splitlines() if line.strip()]
    if lines == ["No jobs in the system"]:
        return []
    for line in lines:
        words = dict(_PAIR.findall(line))
        state = words.get("JobState", "")
        if "JobId" not in words or state not in LIVE | OVER:
            return None
        index = words.get("ArrayTaskId", "")
        array = words.get("ArrayJobId", words["JobId"])
        reason = words.get("Reason", "")
        names = f"{words.get('JobName', '')}|{words.get('Comment', '')}"
        for number in _indices(index):
            found = _ours(keys, names, f"{array}_{number}", str(number), state, reason)
            jobs += found
    return jobs


def read_sacct(text: str, keys: Collection[str]) -> list[Job]:
    """Jobs in `sacct --parsable2 --format=JobID,State,JobName,Comment`; other lines are passed."""
    jobs: list[Job] = []
    for line in text.splitlines():
        identity, _, rest = line.partition("|")
        state, _, names = rest.partition("|")
        array, _, index = identity.partition("_")
        if array.isdigit() and index.isdigit() and state:
            jobs += _ours(keys, names, identity, index, state.split()[0].rstrip("+"), "")
    return jobs


def _ours(
    keys: Collection[str], names: str, identity: str, index: str, state: str, reason: str
) -> Iterator[Job]:
    """The job if one of the keys is in its name or comment, and it is one of an array."""
    key = next((key for key in keys if key in names), None)
    if key is not None and index.isdigit():
        alive, runs = state in LIVE, state in RUNNING
        yield Job(key, int(index), identity, state, reason.strip("() "), alive, runs)


def _indices(text: str) -> list[int]:
    """`3`, `0-2,5%2`: the jobs of an array that one line is about."""
    found: list[int] = []
    for part in text.partition("%")[0].split(","):
        begin, _, end = part.partition("-")
        if begin.isdigit() and (end or begin).isdigit():
            found += range(int(begin), int(end or begin) + 1)
    return found
