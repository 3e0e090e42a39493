"""The programs of the lying scheduler: one bash script under six names, a few milliseconds each.

A call is the program's name, directory, arguments and variables, NUL after each; the answer is a
line `EXIT_CODE HOW`, the standard error in one line, and the standard output: in one line too, or,
where it is long, to the end of the stream.
"""

from pathlib import Path

PROGRAMS = ("sbatch", "squeue", "scontrol", "sacct", "scancel", "sinfo")
LONG = 4000  # bytes; bash reads a line from a socket byte by byte
CLIENT = r"""#!/bin/bash
exec 3<>/dev/tcp/127.0.0.1/@PORT@ || exit 111
printf '%s\0' "${0##*/}" "$PWD" "$#" "$@" >&3
for name in "${!SBATCH_@}" "${!SLURM_@}"; do printf '%s=%s\0' "$name" "${!name}" >&3; done
printf '\0' >&3
IFS= read -r -u 3 how || exit 112
if [ "$how" = stdin ]; then
  IFS= read -r -d '' script
  printf '%s\0' "$script" >&3
  IFS= read -r -u 3 how || exit 112
fi
IFS= read -r -u 3 error
printf '%b' "$error" >&2
if [ "${how#* }" = rest ]; then cat <&3; else IFS= read -r -u 3 output; printf '%b' "$output"; fi
exit "${how% *}"
"""


def write_programs(directory: Path, port: int) -> None:
    """Put the six programs into `directory`, which is to be the first on PATH."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        path = directory / name
        path.write_text(CLIENT.replace("@PORT@", str(port)))
        path.chmod(0o755)


def escaped(data: bytes) -> bytes:
    """What bash's `printf %b` turns into `data` again."""
    return b"".join(
        bytes([byte]) if 32 <= byte < 127 and byte != 92 else b"\\0%03o" % byte for byte in data
    )


def encoded(code: int, error: bytes, output: bytes) -> bytes:
    """An answer on the wire."""
    if len(output) > LONG:
        return b"%d rest\n%s\n%s" % (code, escaped(error), output)
    return b"%d line\n%s\n%s\n" % (code, escaped(error), escaped(output))
