"""The launcher of one run of a sweep: `python -m dsv3.launch.one RUN_DIR --config FILE`; no Hydra.

It is a process of its own because `launch` needs a main thread and the signals. When the process of
the sweep dies, however it dies, this one asks its ranks to save and end.
"""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from dsv3.errors import Dsv3Error, InterruptedError_, SavedForRequeueError
from dsv3.files import refused
from dsv3.launch.local import launch
from dsv3.launch.process import Process, start
from dsv3.launch.signals import FORWARDED
from dsv3.runs.directory import RunDirectory
from dsv3.runs.parent import end_with_parent

MODULE = "dsv3.launch.one"


def start_one(
    run: RunDirectory,
    config_file: str,
    *,
    quiet: bool,
    environment: Mapping[str, str],
    output: IO[bytes] | None,
) -> Process:
    """Start the launcher of `run`; call it from the main thread.

    It and its first rank have this process' terminal, or write to `output`. Raises CapacityError if
    it cannot be started.
    """
    command = [sys.executable, "-P", "-m", MODULE, str(run.path)]
    command += ["--config", config_file, "--parent", str(os.getpid())]
    return start([*command, "--quiet"] if quiet else command, environment, output=output)


def main(argv: Sequence[str] | None = None) -> int:
    """Launch the ranks of a run and wait for them; returns the exit code of the run."""
    parser = argparse.ArgumentParser(prog=MODULE, description="The launcher of one run of a sweep.")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--config", dest="config_file", required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--quiet", action="store_true")
    arguments = parser.parse_args(argv)
    end_with_parent(arguments.parent, signal.SIGTERM)
    # Whoever started this process blocked the signals; `launch` takes them when it can handle them.
    waiting = signal.sigpending().intersection(FORWARDED)
    if waiting:
        kind = InterruptedError_ if waiting == {signal.SIGINT} else SavedForRequeueError
        return kind.exit_code
    try:
        run = RunDirectory(arguments.run_dir)
        return launch(run.path, run.config(arguments.config_file), quiet=arguments.quiet)
    except (Dsv3Error, OSError) as error:
        return _say(error)


def _say(error: Dsv3Error | OSError) -> int:
    if isinstance(error, OSError):
        error = refused(error) or Dsv3Error(f"a defect of dsv3: {type(error).__name__}: {error}")
    with contextlib.suppress(OSError):  # nobody reads stderr any more
        sys.stderr.writelines(f"{line}\n" for line in error.lines())
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
