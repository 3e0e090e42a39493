"""A rank: `python -m dsv3.train.worker RUN_DIR --config FILE`; reads frozen files, no Hydra."""

import contextlib
import faulthandler
import logging
import sys
from collections.abc import Sequence

from dsv3.errors import CapacityError, Dsv3Error, NumericHealthError, Problem
from dsv3.files import refused, storage_error
from dsv3.runs.directory import RunDirectory
from dsv3.runs.lock import RunLock
from dsv3.runs.rank import RankArguments
from dsv3.runs.records import EventLog
from dsv3.train.signals import StopRequest, hold_stop_signals, stop_with_launcher

LOG_NAME = "rank-0.log"
OUT_OF_MEMORY = ("can't allocate memory", "out of memory")
"""How the allocators of the CPU and of CUDA say it; torch has no class for the CPU's."""

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Train the run to its end; returns the exit code of the process."""
    hold_stop_signals()
    arguments = RankArguments.from_argv(sys.argv[1:] if argv is None else argv)
    run = RunDirectory(arguments.run_dir)
    try:
        log_to_file(run)
        with StopRequest() as stop:
            stop_with_launcher()
            with RunLock(run.lock_path) as lock:
                _attempt(run, arguments, stop, lock)
    except Dsv3Error as error:
        _say(error)
        return error.exit_code
    return 0


def _attempt(run: RunDirectory, arguments: RankArguments, stop: StopRequest, lock: RunLock) -> None:
    """Train; what another try would most likely meet again is written down as a failure."""
    try:
        # The long imports come after the signals and the lock are in hand: who is not to train
        # learns it at once.
        from dsv3.train.attempt import train_attempt

        train_attempt(run, arguments, stop, lock)
    except NumericHealthError as error:
        _mark_failed(run, error)
        raise
    except Dsv3Error:
        raise
    except Exception as error:
        logger.exception("the end of this rank")
        failure = capacity_error(error)
        if failure is None:
            what = f"a defect of dsv3: {type(error).__name__}: {error}"
            log = run.logs / LOG_NAME
            failure = Dsv3Error(Problem("", what, f"the traceback is at the end of {log}"))
            _mark_failed(run, failure)
        raise failure from error


def capacity_error(error: Exception) -> Dsv3Error | None:
    """The error for what this machine is too small for; None if that is not what happened."""
    if isinstance(error, OSError):
        return refused(error)
    if isinstance(error, MemoryError) or any(said in str(error) for said in OUT_OF_MEMORY):
        first_line = str(error).partition("\n")[0]
        rule = f"there is not enough: {first_line}" if first_line else "there is not enough"
        return CapacityError(Problem("memory", rule, "lower schedule.micro_batch_size"))
    return None


def _mark_failed(run: RunDirectory, error: Dsv3Error) -> None:
    try:
        run.mark_failed(error)
        with EventLog(run.events_path) as events:
            events.event(
                "failed", exit_code=error.exit_code, problems=list(map(str, error.problems))
            )
    except CapacityError as full:
        _say(full)


def _say(error: Dsv3Error) -> None:
    with contextlib.suppress(OSError):  # nobody reads stderr any more
        sys.stderr.writelines(f"{line}\n" for line in error.lines())


def log_to_file(run: RunDirectory, name: str = LOG_NAME) -> None:
    """Send log lines, warnings and the stacks of a crash to a file in logs/."""
    path = run.logs / name
    try:
        path.parent.mkdir(exist_ok=True)
        file = path.open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise storage_error(path, error, "make the run directory writable") from error
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("dsv3").setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
    faulthandler.enable(file=file)


if __name__ == "__main__":
    sys.exit(main())
