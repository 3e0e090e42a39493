"""The process behind a mirror: reads lines from its stdin and writes them to W&B or TensorBoard.

A process of its own, because dashboards' libraries install exit hooks, exception hooks and
threads: here they can hang or fail without the rank noticing, and be killed. It ends when its stdin
does, so also when the rank is killed, and then prints its report as one JSON object.
"""

import json
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TextIO, cast

from dsv3.redaction import RedactingStream, redact
from dsv3.train.mirrored import Backend, MirroredRun
from dsv3.train.tensorboard_mirror import TensorBoardBackend
from dsv3.train.wandb_mirror import WandbBackend

BACKENDS: Mapping[str, Callable[[MirroredRun], Backend]] = {
    "wandb": WandbBackend,
    "tensorboard": TensorBoardBackend,
}


@dataclass
class Report:
    """What became of the lines that arrived, and the first thing that went wrong."""

    written: int = 0
    failed: int = 0
    warning: str | None = None

    def note(self, what: str, error: Exception) -> None:
        """Remember `error` if it is the first."""
        if self.warning is None:
            first_line = str(error).strip().partition("\n")[0]
            self.warning = redact(f"{what}: {type(error).__name__}: {first_line}")


def serve(lines: Iterable[str], backends: Mapping[str, Callable[[MirroredRun], Backend]]) -> Report:
    """Mirror `lines`: the run, then `{"step": n, "values": {...}}` or `{"roll_back": n}`."""
    report = Report()
    incoming = iter(lines)
    try:
        run = MirroredRun(**json.loads(next(incoming)))
        backend = backends[run.backend](run)
    except Exception as error:  # noqa: BLE001 - whatever a backend raises is reported, not raised
        report.note("tracking is off", error)
        return report
    report.warning = getattr(backend, "warning", None)
    for line in incoming:
        try:
            what = json.loads(line)
            if "roll_back" in what:
                backend.roll_back(what["roll_back"])
            else:
                backend.log(**what)
                report.written += 1
        except Exception as error:  # noqa: BLE001
            report.failed += "roll_back" not in line
            report.note("tracking lost a line", error)
    try:
        backend.close()
    except Exception as error:  # noqa: BLE001
        report.note("tracking did not close", error)
    return report


def main() -> None:
    """Serve stdin; signals that are meant for the rank are left to the rank."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stderr = cast(TextIO, RedactingStream(sys.stderr))
    report = serve(sys.stdin, BACKENDS)
    sys.stdout.write(json.dumps(asdict(report)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
