"""The command lines of Slurm's programs, as far as the lying scheduler understands them.

What it does not know it refuses, as the real ones do: a test may not pass on an option that no
Slurm has.
"""

import getopt
import re
import shlex

# By program: short options and long ones as `getopt` has them; `:` and `=`: it takes a value.
SBATCH = (
    "a:A:b:c:C:d:D:e:F:G:HhI:iJ:kK:L:m:M:N:n:o:Op:q:Qst:uvVw:W:x:",
    "account= acctg-freq= array= begin= chdir= cluster= clusters= comment= constraint= container= "
    "cores-per-socket= cpus-per-gpu= cpus-per-task= deadline= delay-boot= dependency= "
    "distribution= error= exclude= exclusive export= export-file= gpu-bind= gpu-freq= gpus= "
    "gpus-per-node= gpus-per-socket= gpus-per-task= gres= gres-flags= hold ignore-pbs input= "
    "job-name= kill-on-invalid-dep= licenses= mail-type= mail-user= mem= mem-per-cpu= mem-per-gpu= "
    "mincpus= network= nice no-kill no-requeue nodefile= nodelist= nodes= ntasks= ntasks-per-core= "
    "ntasks-per-gpu= ntasks-per-node= open-mode= output= overcommit oversubscribe parsable "
    "partition= prefer= priority= qos= quiet requeue reservation= signal= switches= test-only "
    "threads-per-core= time= time-min= tmp= uid= gid= use-min-nodes verbose version wait "
    "wait-all-nodes= wckey= wrap=",
)
SBATCH_NAMES = {
    "a": "array", "A": "account", "c": "cpus-per-task", "C": "constraint", "d": "dependency",
    "D": "chdir", "e": "error", "G": "gpus", "H": "hold", "J": "job-name", "N": "nodes",
    "n": "ntasks", "o": "output", "p": "partition", "q": "qos", "Q": "quiet", "t": "time",
    "V": "version", "w": "nodelist", "x": "exclude",
}  # fmt: skip
# In 22.05 an environment variable goes over a line of the script, and below the command line.
SBATCH_VARIABLES = {
    "SBATCH_ACCOUNT": "account", "SBATCH_ARRAY_INX": "array", "SBATCH_JOB_NAME": "job-name",
    "SBATCH_PARTITION": "partition", "SBATCH_QOS": "qos", "SBATCH_TIMELIMIT": "time",
    "SBATCH_EXPORT": "export", "SBATCH_CONSTRAINT": "constraint",
}  # fmt: skip
SQUEUE = (
    "ahi:j:lM:n:o:O:p:q:rS:st:u:vVw:",
    "all array clusters= format= Format= help iterate= jobs= long me name= nodelist= noheader "
    "partition= qos= sort= start states= user= users= version",
)
SQUEUE_NAMES = {
    "a": "all", "h": "noheader", "j": "jobs", "n": "name", "o": "format", "O": "Format",
    "p": "partition", "r": "array", "t": "states", "u": "user", "V": "version", "S": "sort",
    "w": "nodelist",
}  # fmt: skip
SACCT = (
    "aDE:hj:lnN:o:pPs:S:u:VXM:T",
    "allclusters allusers array clusters= delimiter= duplicates endtime= format= helpformat jobs= "
    "long name= noconvert noheader parsable parsable2 state= starttime= truncate user= uid= "
    "allocations version units=",
)
SACCT_NAMES = {
    "n": "noheader", "a": "allusers", "E": "endtime", "j": "jobs", "o": "format", "p": "parsable",
    "l": "long",
    "P": "parsable2", "s": "state", "S": "starttime", "u": "user", "X": "allocations",
    "V": "version", "T": "truncate",
}  # fmt: skip
SCANCEL = (
    "bfHiM:n:p:q:Qs:t:u:vVw:A:",
    "account= batch ctld full hurry interactive clusters= jobname= name= nodelist= partition= qos= "
    "quiet reservation= signal= state= user= verbose version me",
)
SCANCEL_NAMES = {
    "n": "name",
    "s": "signal",
    "u": "user",
    "Q": "quiet",
    "V": "version",
    "t": "state",
}
SINFO = (
    "ahlM:n:No:O:p:rRst:vV",
    "all exact format= Format= long Node nodes= noheader partition= responding states= version",
)
SINFO_NAMES = {"h": "noheader", "n": "nodes", "N": "Node", "o": "format", "p": "partition",
               "t": "states", "V": "version", "a": "all"}  # fmt: skip
GRAMMARS = {
    "sbatch": (SBATCH, SBATCH_NAMES),
    "squeue": (SQUEUE, SQUEUE_NAMES),
    "sacct": (SACCT, SACCT_NAMES),
    "scancel": (SCANCEL, SCANCEL_NAMES),
    "sinfo": (SINFO, SINFO_NAMES),
}
ARRAY_PART = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")
MAX_ARRAY_SIZE = 1001  # Slurm's default: the largest index is 1000


class UsageError(Exception):
    """An option that the program does not have; the message is the program's."""


Options = dict[str, str]


def parse(program: str, arguments: list[str]) -> tuple[Options, list[str]]:
    """Options by long name, `true` for those without a value, and what is left."""
    (short, long), names = GRAMMARS[program]
    # What follows the script is the script's.
    read = getopt.getopt if program == "sbatch" else getopt.gnu_getopt
    try:
        found, rest = read(arguments, short, long.split())
    except getopt.GetoptError as error:
        dashes = "--" if len(error.opt) > 1 else "-"
        what = f"unrecognized option '{dashes}{error.opt}'"
        if "requires argument" in error.msg:
            what = f"option '{dashes}{error.opt}' requires an argument"
        raise UsageError(
            f'{program}: {what}\nTry "{program} --help" for more information'
        ) from None
    options = {}
    for option, value in found:
        name = option.lstrip("-")
        options[names.get(name, name) if len(name) == 1 else name] = value or "true"
        if option.startswith("--") and value == "" and f"{name}=" in long.split():
            options[name] = ""
    return options, rest


def of_script(script: str) -> Options:
    """The options of the #SBATCH lines, which end at the first command."""
    options: Options = {}
    for line in script.splitlines()[1:]:
        if line.startswith("#SBATCH"):
            options |= parse("sbatch", shlex.split(line.removeprefix("#SBATCH"), comments=True))[0]
        elif line.strip() and not line.lstrip().startswith("#"):
            break
    return options


def of_environment(environment: Options) -> Options:
    """The options that environment variables stand for."""
    return {
        option: environment[variable]
        for variable, option in SBATCH_VARIABLES.items()
        if variable in environment
    }


def array_indices(text: str) -> tuple[int, ...]:
    """The indices of `0-3,7%2`.

    Raises:
        ValueError: it is not an array that the scheduler takes.
    """
    indices: list[int] = []
    parts, _, throttle = text.partition("%")
    if throttle and not throttle.isdecimal():
        raise ValueError(text)
    for part in parts.strip("[]").split(","):
        found = ARRAY_PART.fullmatch(part)
        if not found:
            raise ValueError(text)
        first, last, step = (int(each) if each else None for each in found.groups())
        assert first is not None
        indices += range(first, (first if last is None else last) + 1, step or 1)
    if not indices or max(indices) >= MAX_ARRAY_SIZE or len(set(indices)) != len(indices):
        raise ValueError(text)
    return tuple(indices)


def ranges(indices: list[int]) -> str:
    """`0-2,5` for 0, 1, 2 and 5."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and parts[-1][-1] == index - 1:
            parts[-1][1:] = [index]
        else:
            parts.append([index])
    return ",".join("-".join(str(end) for end in part) for part in parts)
