"""A rank: `python -m dsv3.train.worker RUN_DIR --config FILE`; reads frozen files, no Hydra."""

import faulthandler
import logging
import sys
from collections.abc import Sequence

from dsv3.errors import Dsv3Error, NumericHealthError
from dsv3.runs.directory import RunDirectory
from dsv3.runs.rank import RankArguments
from dsv3.train.signals import StopRequest, hold_stop_signals, stop_with_launcher

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Train the run to its end; returns the exit code of the process."""
    hold_stop_signals()
    arguments = RankArguments.from_argv(sys.argv[1:] if argv is None else argv)
    run = RunDirectory(arguments.run_dir)
    log_to_file(run)
    try:
        with StopRequest() as stop:
            stop_with_launcher()
            # The long imports come after the signals are in hand.
            from dsv3.train.attempt import train_attempt

            train_attempt(run, arguments, stop)
    except Dsv3Error as error:
        if isinstance(error, NumericHealthError):
            run.mark_failed(error)
        sys.stderr.writelines(f"{line}\n" for line in error.lines())
        return error.exit_code
    except Exception as error:
        logger.exception("a defect of dsv3")
        failure = Dsv3Error(f"a defect of dsv3: {type(error).__name__}: {error}")
        run.mark_failed(failure)
        sys.stderr.writelines(f"{line}\n" for line in failure.lines())
        sys.stderr.write(f"the traceback is at the end of {run.logs / 'rank-0.log'}\n")
        return failure.exit_code
    return 0


def log_to_file(run: RunDirectory) -> None:
    """Send log lines, warnings and the stacks of a crash to logs/rank-0.log."""
    file = (run.logs / "rank-0.log").open("a", encoding="utf-8", buffering=1)
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("dsv3").setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
    faulthandler.enable(file=file)


if __name__ == "__main__":
    sys.exit(main())
