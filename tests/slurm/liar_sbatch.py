"""What the lying scheduler's `sbatch` takes and refuses, in the words of Slurm 22.05."""

from pathlib import Path

from slurm.liar_answers import Answer
from slurm.liar_jobs import NULL, Accepted, Task
from slurm.liar_options import (
    Options,
    UsageError,
    array_indices,
    of_environment,
    of_script,
    parse,
)

PARTITIONS = ("normal", "preemptable", "high")
FAILED = "sbatch: error: Batch job submission failed: "
NO_SHEBANG = """\
sbatch: error: This does not look like a batch script.  The first
sbatch: error: line must start with #! followed by the path to an interpreter.
sbatch: error: For instance: #!/bin/sh"""
MAX_TEXT = 1024  # characters of a name or comment; longer ones are refused


class Refusal(Exception):
    """The submission is not accepted; the message is what sbatch prints."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def is_test_only(arguments: list[str]) -> bool:
    """Whether nothing is to be submitted."""
    return "--test-only" in arguments


def wants_stdin(arguments: list[str]) -> bool:
    """Whether the script comes by standard input."""
    try:
        options, rest = parse("sbatch", arguments)
    except UsageError:
        return False
    return not rest and not {"wrap", "version"} & set(options)


def accept(
    arguments: list[str], environment: Options, directory: Path, stdin: str, number: int
) -> tuple[Accepted | None, Answer]:
    """The job that a submission makes, None for `--test-only`, and what sbatch says then.

    Raises:
        Refusal: it makes none.
    """
    try:
        options, rest = parse("sbatch", arguments)
    except UsageError as error:
        raise Refusal(str(error), 255) from None
    if "version" in options:
        return None, Answer(0, b"slurm-wlm 22.05.8\n")
    script, name = _script(options, rest, directory, stdin)
    try:
        options = {**of_script(script), **of_environment(environment), **options}
    except (UsageError, ValueError) as error:
        raise Refusal(str(error), 255) from None
    indices = _checked(options)
    tasks = [Task(number + place, index) for place, index in enumerate(indices)]
    if is_test_only(arguments):
        when = "2026-01-02T03:04:05 using 1 processors on nodes node1"
        where = options.get("partition", PARTITIONS[0])
        text = f"sbatch: Job {number} to start at {when} in partition {where}\n"
        return None, Answer(0, error=text)
    job = Accepted(
        id=number,
        name=options.get("job-name", name),
        comment=options.get("comment", NULL),
        script=script,
        arguments=rest,
        options=options,
        directory=options.get("chdir", str(directory)),
        environment=environment,
        tasks=tasks,
    )
    said = f"{number}\n" if "parsable" in options else f"Submitted batch job {number}\n"
    return job, Answer(0, said.encode())


def _script(options: Options, rest: list[str], directory: Path, stdin: str) -> tuple[str, str]:
    """The script's text, and the name that a job has by it."""
    if "wrap" in options:
        return (
            f"#!/bin/sh\n# This script was created by sbatch --wrap.\n\n{options['wrap']}\n",
            "wrap",
        )
    if not rest:
        script, name = stdin, "sbatch"
    else:
        path = directory / rest[0]
        try:
            script, name = path.read_text(errors="surrogateescape"), path.name
        except OSError:
            raise Refusal(f"sbatch: error: Unable to open file {rest[0]}") from None
    if not script.startswith("#!"):
        raise Refusal(NO_SHEBANG)
    return script, name


def _checked(options: Options) -> tuple[int | None, ...]:
    """The tasks' indices.

    Raises:
        Refusal: a value that the controller does not take.
    """
    partition = options.get("partition", PARTITIONS[0])
    if partition not in PARTITIONS:
        raise Refusal(
            f"sbatch: error: invalid partition specified: {partition}\n"
            f"{FAILED}Invalid partition name specified"
        )
    if max(len(options.get(each, "")) for each in ("job-name", "comment")) > MAX_TEXT:
        raise Refusal(f"{FAILED}Pathname of a file, directory or other parameter too long")
    if "array" not in options:
        return (None,)
    try:
        return array_indices(options["array"])
    except ValueError:
        raise Refusal(f"{FAILED}Invalid job array specification") from None
