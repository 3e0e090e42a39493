"""The process behind a mirror: reads lines from its stdin and writes them to W&B or TensorBoard.

A process of its own, because dashboards' libraries install exit hooks, exception hooks and
threads: here they can hang or fail without the rank noticing, and be killed. It ends when its stdin
does, so also when the rank is killed, and then prints its report as one JSON object.
"""

import contextlib
import json
import netrc
import os
import signal
import sys
import time
import types
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

_PROBE_S = 5.0
_WANDB_URL = "https://api.wandb.ai"


@dataclass(frozen=True)
class MirroredRun:
    """What a backend has to know of the run; `config` is the validated configuration only."""

    backend: str
    id: str
    directory: str
    project: str
    first_step: int
    config: Mapping[str, Any]


class Backend(Protocol):
    """What a mirror writes to."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of one step."""

    def close(self) -> None:
        """Write what is still buffered."""


class TensorBoardBackend:
    """Event files under `tensorboard/`; what earlier attempts wrote beyond the resume is hidden."""

    def __init__(self, run: MirroredRun) -> None:
        # TensorBoard's own switch for its stub: where TensorFlow is installed it would otherwise
        # be imported, for seconds and gigabytes.
        sys.modules.setdefault(
            "tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf")
        )
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise RuntimeError("tensorboard is missing: pip install 'dsv3[tensorboard]'") from error
        self._event = event_pb2.Event
        self._summary = summary_pb2.Summary
        self._writer = EventFileWriter(str(Path(run.directory) / "tensorboard"), flush_secs=10)
        started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(run.first_step, session_log=started)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one scalar per number."""
        scalars = [
            self._summary.Value(tag=name, simple_value=value) for name, value in values.items()
        ]
        self._add(step, summary=self._summary(value=scalars))

    def close(self) -> None:
        """Flush the event file."""
        self._writer.close()

    def _add(self, step: int, **what: Any) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), step=step, **what))


class WandbBackend:
    """W&B under the run's id, online where a key and the server are; else offline, to sync later.

    Steps are an ordinary value: after a resume W&B would drop lines whose own step went back.
    """

    def __init__(self, run: MirroredRun) -> None:
        mode = wandb_mode(os.environ)
        _set_wandb_environment(Path(run.directory) / "wandb")
        import wandb

        settings = wandb.Settings(
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=run.project,
            id=run.id,
            name=run.id,
            dir=run.directory,
            mode=mode,
            resume="allow",
            config=dict(run.config),
            settings=settings,
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers as one line of history."""
        self._run.log({**values, "step": step})

    def close(self) -> None:
        """Finish the W&B run; the dsv3 run may well go on later."""
        self._run.finish()


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
            self.warning = f"{what}: {type(error).__name__}: {first_line}"


def serve(lines: Iterable[str], backends: Mapping[str, Callable[[MirroredRun], Backend]]) -> Report:
    """Mirror `lines`: first the run, then `{"step": n, "values": {...}}` until they end."""
    report = Report()
    incoming = iter(lines)
    try:
        run = MirroredRun(**json.loads(next(incoming)))
        backend = backends[run.backend](run)
    except Exception as error:  # noqa: BLE001 - whatever a backend raises is reported, not raised
        report.note("tracking is off", error)
        return report
    for line in incoming:
        try:
            backend.log(**json.loads(line))
            report.written += 1
        except Exception as error:  # noqa: BLE001
            report.failed += 1
            report.note("tracking lost a line", error)
    try:
        backend.close()
    except Exception as error:  # noqa: BLE001
        report.note("tracking did not close", error)
    return report


def wandb_mode(environment: Mapping[str, str]) -> Any:
    """`online` where a key and the server are, else `offline`: nothing prompts, nothing is lost.

    None: the user's WANDB_MODE decides.
    """
    if environment.get("WANDB_MODE"):
        return None
    return "online" if has_wandb_key(environment) and _answers(_url(environment)) else "offline"


def has_wandb_key(environment: Mapping[str, str]) -> bool:
    """Whether there is a key for W&B's server, in the environment or in the user's netrc file."""
    return bool(environment.get("WANDB_API_KEY")) or _in_netrc(_url(environment), environment)


def _url(environment: Mapping[str, str]) -> str:
    return environment.get("WANDB_BASE_URL") or _WANDB_URL


def _in_netrc(url: str, environment: Mapping[str, str]) -> bool:
    with contextlib.suppress(OSError, netrc.NetrcParseError, RuntimeError):
        file = environment.get("NETRC") or str(Path.home() / ".netrc")
        return netrc.netrc(file).authenticators(urlsplit(url).hostname or "") is not None
    return False


def _answers(url: str) -> bool:
    """Whether anything at all comes back; otherwise W&B would try for minutes and keep nothing."""
    if urlsplit(url).scheme not in {"http", "https"}:
        return False
    try:
        urllib.request.urlopen(url, timeout=_PROBE_S).close()  # noqa: S310 - scheme checked above
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _set_wandb_environment(home: Path) -> None:
    variables = {
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_CACHE_DIR": str(home / "cache"),
        "WANDB_DATA_DIR": str(home / "data"),
        "WANDB_ARTIFACT_DIR": str(home / "artifacts"),
    }
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def main() -> None:
    """Serve stdin; signals that are meant for the rank are left to the rank."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    report = serve(sys.stdin, BACKENDS)
    sys.stdout.write(json.dumps(asdict(report)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
