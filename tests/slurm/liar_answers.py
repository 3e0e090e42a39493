"""What the lying scheduler's other programs answer when they tell the truth."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from slurm.jobs import ENDED
from slurm.liar_jobs import (
    SHORT,
    SQUEUE_DEFAULT,
    Accepted,
    Row,
    long_format,
    sacct_lines,
    scontrol_line,
    squeue_lines,
)
from slurm.liar_options import MAX_ARRAY_SIZE, Options, UsageError, parse

CONNECT = "Unable to contact slurm controller (connect failure)"
UNKNOWN_JOB = "slurm_load_jobs error: Invalid job id specified\n"
ASKED_JOB = re.compile(r"(\d+)(?:_(?:(\d+)|\[?([\d,%-]+)\]?))?")


@dataclass(frozen=True)
class Answer:
    """How a program ends, and what it prints."""

    code: int
    output: bytes = b""
    error: str = ""


class Installation(Protocol):
    """What the programs know beyond the jobs."""

    release: str
    accounting: bool


# What each program says when it reaches nobody, or hears nothing; {} is why.
NOBODY = {
    "sbatch": "sbatch: error: Batch job submission failed: {}",
    "squeue": "slurm_load_jobs error: {}",
    "scontrol": "slurm_load_jobs error: {}",
    "scancel": "scancel: error: Kill job error on job id {number}: {}",
    "sinfo": "slurm_load_partitions: {}",
    "sacct": "sacct: error: Sending PersistInit msg: {}\n"
    "sacct: error: Problem talking to the database: {}",
}


def no_controller(program: str, arguments: list[str], why: str = CONNECT) -> Answer:
    """The answer of a program that asks in vain."""
    if program == "scontrol" and arguments[:1] == ["ping"]:
        return Answer(1, b"Slurmctld(primary) at node0 is DOWN\n")
    text = NOBODY[program]
    if program == "sbatch" and "--test-only" in arguments:
        text = "allocation failure: {}"
    elif program == "sacct":
        why = "Connection refused"
    number = arguments[-1] if arguments else "0"
    return Answer(1, error=text.replace("{number}", number).replace("{}", why) + "\n")


def answer_query(
    program: str, arguments: list[str], jobs: list[Accepted], installation: Installation
) -> Answer:
    """The truth, of the jobs that may be seen."""
    if program == "scontrol":
        return _scontrol(arguments, jobs, installation)
    try:
        options, rest = parse(program, arguments)
    except UsageError as error:
        return Answer(1, error=f"{error}\n")
    if "version" in options:
        return _version(installation)
    answers: dict[str, Callable[[], Answer]] = {
        "squeue": lambda: _squeue(options, jobs),
        "sacct": lambda: _sacct(options, jobs, installation),
        "scancel": lambda: _scancel(options, rest, jobs),
        "sinfo": lambda: _sinfo(options),
    }
    return answers[program]()


def _version(installation: Installation) -> Answer:
    return Answer(0, f"slurm-wlm {installation.release}\n".encode())


def _text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")


def _rows(jobs: list[Accepted], *, expanded: bool) -> list[Row]:
    return [row for job in jobs for row in job.rows(expanded=expanded)]


def _asked(row: Row, ids: list[str]) -> bool:
    """Whether a row is one of `5`, `5_2`, or of the raw id of a task."""
    for each in ids:
        number, _, index = each.partition("_")
        if index == "" and int(number) in (row.job.id, row.task.raw_id):
            return True
        if index and int(number) == row.job.id and index == row.index:
            return True
    return False


def _squeue(options: Options, jobs: list[Accepted]) -> Answer:
    ids = [each for each in options.get("jobs", "").split(",") if each]
    expanded = "array" in options or any("_" in each for each in ids)
    rows = _rows(jobs, expanded=expanded)
    if ids:
        rows = [row for row in rows if _asked(row, ids)]
        if not rows and len(ids) == 1:
            return Answer(1, error=UNKNOWN_JOB)
    if "name" in options:
        rows = [row for row in rows if row.job.name in options["name"].split(",")]
    if "partition" in options:
        rows = [row for row in rows if row.job.partition in options["partition"].split(",")]
    wanted = options.get("states", "")
    if wanted.lower() != "all":
        names = {each.upper() for each in wanted.split(",") if each}
        rows = [
            row
            for row in rows
            if (row.task.state in names or SHORT[row.task.state] in names)
            or (not names and row.task.state not in ENDED)
        ]
    text = options.get("format", SQUEUE_DEFAULT)
    if "Format" in options:
        try:
            text = long_format(options["Format"])
        except KeyError as error:
            return Answer(1, error=f"squeue: error: Invalid job format specification: {error}\n")
    return Answer(0, _text(squeue_lines(rows, text, header="noheader" not in options)))


def _scontrol(arguments: list[str], jobs: list[Accepted], installation: Installation) -> Answer:
    flags = {each for each in arguments if each.startswith("-")}
    if flags - {"-o", "--oneliner", "-d", "--details", "-Q", "--quiet", "-V", "--version"}:
        return Answer(1, error='Try "scontrol --help" for more information\n')
    said = Answer(0)
    match [each for each in arguments if not each.startswith("-")]:
        case _ if flags & {"-V", "--version"}:
            said = _version(installation)
        case ["ping"]:
            said = Answer(0, b"Slurmctld(primary) at node0 is UP\n")
        case ["show", what, *more]:
            said = _scontrol_show(what, "".join(more), flags, jobs)
        case ["requeue", *numbers] if numbers:
            said = _requeue(",".join(numbers).split(","), jobs)
        case ["update" | "hold" | "release", *_]:
            pass
        case words:
            said = Answer(1, error=f"invalid keyword: {' '.join(words)}\n")
    return said


def _scontrol_show(what: str, which: str, flags: set[str], jobs: list[Accepted]) -> Answer:
    if what in {"hostnames", "hostname"}:
        return Answer(0, _text(expand(which)))
    if what == "config":
        lines = [f"MaxArraySize            = {MAX_ARRAY_SIZE}", "PreemptMode = REQUEUE"]
        return Answer(0, _text(["Configuration data as of now", *lines]))
    if what not in {"job", "jobs", "jobid"}:
        return Answer(0)
    if which and not ASKED_JOB.fullmatch(which):
        return Answer(1, error=f"scontrol: error: Invalid job id {which}\n")
    rows = _rows(jobs, expanded="_" in which)
    return _show([row for row in rows if not which or _asked(row, [which])], flags, which)


def _show(rows: list[Row], flags: set[str], number: str) -> Answer:
    if not rows and number:
        return Answer(1, error=UNKNOWN_JOB)
    if not rows:
        return Answer(0, b"No jobs in the system\n")
    one_line = bool(flags & {"-o", "--oneliner"})
    return Answer(0, _text([scontrol_line(row, one_line=one_line) for row in rows]))


def _requeue(numbers: list[str], jobs: list[Accepted]) -> Answer:
    rows = _rows(jobs, expanded=True)
    for number in numbers:
        found = [row for row in rows if _asked(row, [number])]
        if not found:
            return Answer(1, error=f"Invalid job id specified for job {number}\n")
        for row in found:
            row.task.state, row.task.node = "PENDING", ""
            row.task.restarts += 1
    return Answer(0)


def _sacct(options: Options, jobs: list[Accepted], installation: Installation) -> Answer:
    if not installation.accounting:
        return Answer(1, error="Slurm accounting storage is disabled\n")
    rows = _rows(jobs, expanded=False)
    if ids := [each for each in options.get("jobs", "").split(",") if each]:
        rows = [row for row in rows if _asked(row, ids)]
    if "name" in options:
        rows = [row for row in rows if row.job.name in options["name"].split(",")]
    try:
        return Answer(0, _text(sacct_lines(rows, options)))
    except KeyError as error:
        return Answer(1, error=f'sacct: error: Invalid field requested: "{error.args[0]}"\n')


def _scancel(options: Options, rest: list[str], jobs: list[Accepted]) -> Answer:
    bad = [each for each in rest if not ASKED_JOB.fullmatch(each)]
    if bad:
        return Answer(1, error=f"scancel: error: Invalid job id {bad[0]}\n")
    rows = _rows(jobs, expanded=True)
    if "name" in options:
        rows = [row for row in rows if row.job.name in options["name"].split(",")]
    elif not rest and not {"user", "me"} & set(options):
        return Answer(1, error="scancel: error: No job identification provided\n")
    if rest:
        rows = [row for row in rows if _asked(row, rest)]
    for row in rows:
        if row.task.state not in ENDED and "signal" not in options:
            row.task.state = "CANCELLED"
    return Answer(0)


def _sinfo(options: Options) -> Answer:
    names = {"P": "PARTITION", "a": "AVAIL", "l": "TIMELIMIT", "D": "NODES", "T": "STATE",
             "t": "STATE", "N": "NODELIST", "c": "CPUS", "m": "MEMORY", "G": "GRES",
             "f": "AVAIL_FEATURES"}  # fmt: skip
    known = [
        {"P": f"{partition}{'*' * (partition == 'normal')}", "a": "up", "l": "infinite", "D": "2",
         "T": "idle", "t": "idle", "N": "node[1-2]", "c": "8", "m": "64000", "G": "gpu:4",
         "f": "h800"}
        for partition in ("normal", "preemptable", "high")
        if partition in options.get("partition", partition).split(",")
    ]  # fmt: skip
    text = options.get("format", "%P %a %l %D %T %N")
    table = known if "noheader" in options else [names, *known]
    lines = [
        re.sub(r"%\.?\d*([A-Za-z])", lambda match, line=line: line.get(match[1], ""), text)
        for line in table
    ]
    return Answer(0, _text(lines))


def expand(names: str) -> list[str]:
    """`node1, node2, other` for `node[1-2],other`."""
    found: list[str] = []
    for prefix, inside, plain in re.findall(r"([^,\[]+)\[([^\]]+)\]|([^,]+)", names):
        if plain:
            found.append(plain)
        for part in inside.split(",") if inside else []:
            first, _, last = part.partition("-")
            width = len(first)
            for number in range(int(first), int(last or first) + 1):
                found.append(f"{prefix}{number:0{width}}")
    return found
