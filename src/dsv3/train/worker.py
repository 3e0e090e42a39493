"""A rank: `python -m dsv3.train.worker RUN_DIR --config FILE`; reads frozen files, no Hydra."""

import contextlib
import faulthandler
import logging
import os
import sys
from collections.abc import Sequence

from dsv3.errors import CapacityError, Dsv3Error, NumericHealthError, Problem, RankLostError
from dsv3.files import refused, storage_error
from dsv3.machine import importing
from dsv3.redaction import RedactingFormatter, print_no_secret_when_lost
from dsv3.runs.directory import RunDirectory
from dsv3.runs.lock import LOCK_GRACE_S, RunLock
from dsv3.runs.rank import (
    BOARD_VARIABLE,
    LOCK_PATIENCE_VARIABLE,
    Place,
    RankArguments,
    log_name,
    stack_name,
)
from dsv3.runs.records import EventLog
from dsv3.train.heartbeat import Heartbeat, answer_with_stacks
from dsv3.train.signals import (
    StopRequest,
    die_with_launcher,
    hold_stop_signals,
    stop_with_launcher,
)

OUT_OF_MEMORY = ("can't allocate memory", "out of memory")
"""How the allocators of the CPU and of CUDA say it; torch has no class for the CPU's."""
PEER_IS_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Socket closed",
    "Timed out waiting",
    "remote process exited",
)
"""How gloo and NCCL say it; the store of the ranks has classes of its own."""
PEER_ERRORS = ("DistNetworkError", "DistStoreError")

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Train the run to its end as one of its ranks; returns the exit code of the process."""
    print_no_secret_when_lost()
    hold_stop_signals()
    place = Place.from_environment()
    if not place.alone:
        die_with_launcher()
    arguments = RankArguments.from_argv(sys.argv[1:] if argv is None else argv)
    run = RunDirectory(arguments.run_dir)
    heartbeat = Heartbeat.attach(place)
    try:
        log_to_file(run, log_name(place.rank))
        if not place.alone:
            answer_with_stacks(run.logs / stack_name(place.rank))
        with StopRequest(deaf_afterwards=BOARD_VARIABLE in os.environ) as stop:
            if place.alone:
                stop_with_launcher()
            with _lock(run, place) as lock:
                _attempt(run, arguments, place, stop, lock, heartbeat)
    except Dsv3Error as error:
        _say(error, place, heartbeat)
        return error.exit_code
    return 0


def _lock(run: RunDirectory, place: Place) -> contextlib.AbstractContextManager[RunLock | None]:
    """The lock of the run for its first rank; the others come and go with that one."""
    if not place.first:
        return contextlib.nullcontext()
    patience_s = os.environ.get(LOCK_PATIENCE_VARIABLE, str(LOCK_GRACE_S))
    return RunLock(run.lock_path, patience_s=float(patience_s))


def _attempt(
    run: RunDirectory,
    arguments: RankArguments,
    place: Place,
    stop: StopRequest,
    lock: RunLock | None,
    heartbeat: Heartbeat,
) -> None:
    """Train; what another try would most likely meet again is written down as a failure."""
    try:
        # The long imports come after the signals and the lock are in hand: who is not to train
        # learns it at once.
        with importing():
            from dsv3.train.attempt import train_attempt

        train_attempt(run, arguments, stop, lock, heartbeat)
    except NumericHealthError as error:
        _mark_failed(run, error, place, heartbeat)
        raise
    except Dsv3Error:
        raise
    except Exception as error:
        logger.exception("the end of this rank")
        failure = capacity_error(error) or peer_error(error, place, run)
        if failure is None:
            what = f"a defect of dsv3: {type(error).__name__}: {error}"
            log = run.logs / log_name(place.rank)
            failure = Dsv3Error(Problem("", what, f"the traceback is at the end of {log}"))
            _mark_failed(run, failure, place, heartbeat)
        raise failure from error


def peer_error(error: Exception, place: Place, run: RunDirectory) -> RankLostError | None:
    """The error for a connection to another rank that broke; None if that is not what happened."""
    if place.alone:
        return None
    said = str(error).partition("\n")[0]
    broken = any(words in str(error) for words in PEER_IS_GONE)
    if type(error).__name__ not in PEER_ERRORS and not (broken and isinstance(error, RuntimeError)):
        return None
    rule = f"lost touch with the other ranks: {said}"
    where = f"the traceback is at the end of {run.logs / log_name(place.rank)}"
    return RankLostError(Problem(f"rank {place.rank}", rule, where))


def capacity_error(error: Exception) -> Dsv3Error | None:
    """The error for what this machine is too small for; None if that is not what happened."""
    if isinstance(error, OSError):
        return refused(error)
    if isinstance(error, MemoryError) or any(said in str(error) for said in OUT_OF_MEMORY):
        first_line = str(error).partition("\n")[0]
        rule = f"there is not enough: {first_line}" if first_line else "there is not enough"
        return CapacityError(Problem("memory", rule, "lower schedule.micro_batch_size"))
    return None


def _mark_failed(run: RunDirectory, error: Dsv3Error, place: Place, heartbeat: Heartbeat) -> None:
    # Which of several ranks failed first, only the launcher sees; the others follow that one.
    if heartbeat.fail(error, lasting=True) or not place.first:
        return
    try:
        run.mark_failed(error)
        with EventLog(run.events_path) as events:
            events.event(
                "failed", exit_code=error.exit_code, problems=list(map(str, error.problems))
            )
    except CapacityError as full:
        _print(full)


def _say(error: Dsv3Error, place: Place, heartbeat: Heartbeat) -> None:
    if not heartbeat.fail(error, lasting=False):
        _print(error)


def _print(error: Dsv3Error) -> None:
    with contextlib.suppress(OSError):  # nobody reads stderr any more
        sys.stderr.writelines(f"{line}\n" for line in error.lines())


def log_to_file(run: RunDirectory, name: str) -> None:
    """Send log lines, warnings and the stacks of a crash to a file in logs/."""
    path = run.logs / name
    try:
        path.parent.mkdir(exist_ok=True)
        file = path.open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise storage_error(path, error, "make the run directory writable") from error
    handler = logging.StreamHandler(file)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("dsv3").setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
    faulthandler.enable(file=file)


if __name__ == "__main__":
    sys.exit(main())
