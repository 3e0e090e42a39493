"""An evaluation: `python -m dsv3.train.evaluator RUN_DIR --config FILE --report FILE`.

Reads a run that may be training, without its lock; writes its directory in `evaluations/` and
nothing else of the run.
"""

import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from dsv3.errors import CapacityError, Dsv3Error, InterruptedError_, Problem, SavedForRequeueError
from dsv3.machine import importing
from dsv3.runs.directory import RunDirectory
from dsv3.runs.files import write_json
from dsv3.runs.rank import EvaluationArguments
from dsv3.train.signals import StopRequest, hold_stop_signals, stop_with_launcher
from dsv3.train.worker import capacity_error, log_to_file

LOG_NAME = "evaluation.log"

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, say in the report where or why not, and return the exit code of the process."""
    hold_stop_signals()
    arguments = EvaluationArguments.from_argv(sys.argv[1:] if argv is None else argv)
    run = RunDirectory(arguments.run_dir)
    try:
        log_to_file(run, LOG_NAME)
        with StopRequest() as stop:
            stop_with_launcher()
            directory = _evaluate(run, arguments, stop)
    except Dsv3Error as error:
        with contextlib.suppress(CapacityError):
            write_json(arguments.report, {"error": error.record()})
        return error.exit_code
    write_json(arguments.report, {"directory": str(directory)})
    return 0


def refuse_if_stopped(stop: StopRequest) -> None:
    """Raise what ends this process if a signal came; nothing is half done."""
    if stop.signal is None:
        return
    error = stop.as_error(0)
    text = f"{stop.signal.name}: nothing was written; the same command evaluates again"
    raise (
        InterruptedError_(text)
        if isinstance(error, InterruptedError_)
        else SavedForRequeueError(text)
    )


def _evaluate(run: RunDirectory, arguments: EvaluationArguments, stop: StopRequest) -> Path:
    try:
        with importing():
            from dsv3.train.evaluation_attempt import evaluate_run

        return evaluate_run(run, arguments, lambda: refuse_if_stopped(stop))
    except Dsv3Error:
        raise
    except Exception as error:
        logger.exception("the end of this evaluation")
        failure = capacity_error(error)
        if failure is None:
            what = f"a defect of dsv3: {type(error).__name__}: {error}"
            remedy = f"the traceback is at the end of {run.logs / LOG_NAME}"
            failure = Dsv3Error(Problem("", what, remedy))
        raise failure from error


if __name__ == "__main__":
    sys.exit(main())
