"""Trains the runs of a sweep: each once, some side by side, whatever happens to one of them.

Every run has a launcher of its own (`launch.one`), a child of this process. What is to do is read
off the run directories: another process, or another sweep, may be training any of them.
"""

import os
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from dsv3.config.root import RunConfig
from dsv3.errors import (
    ArmsFailedError,
    Dsv3Error,
    InterruptedError_,
    LockHeldError,
    RankLostError,
    SavedForRequeueError,
)
from dsv3.files import storage_error
from dsv3.launch.one import start_one
from dsv3.launch.process import Process
from dsv3.launch.signals import sent_by_terminal, signals_as_bytes, stops_so_far
from dsv3.runs.directory import RunDirectory, Status
from dsv3.sweep.arms import Arm
from dsv3.sweep.slots import Slots

STOPPED = (SavedForRequeueError.exit_code, InterruptedError_.exit_code)
OUTPUT = "launcher.log"
"""In logs/: what a run prints that is trained beside others."""
POLL_S = 1.0
"""How often the locks of other processes are looked at."""
_MOST_OVERTAKEN = 5


@dataclass(frozen=True)
class Job:
    """One run of the sweep; `number` of `total`, from 1."""

    number: int
    total: int
    arm: Arm
    directory: RunDirectory

    @property
    def config(self) -> RunConfig:
        """What its ranks are given."""
        return self.arm.config


@dataclass(frozen=True)
class Outcome:
    """How one run ended; `trained` is False where there was nothing left to do."""

    job: Job
    exit_code: int
    trained: bool


class Watcher(Protocol):
    """Who shows what happens."""

    refresh_s: float | None

    def starts(self, job: Job) -> None:
        """A run is about to start."""

    def waits(self, jobs: Sequence[Job]) -> None:
        """Nothing can start: other processes train these."""

    def failed_before(self, job: Job) -> None:
        """A run that failed the last time is left as it is."""

    def cannot(self, job: Job, error: Dsv3Error) -> None:
        """A run could not be started."""

    def ended(self, outcome: Outcome, said: Path | None, begin: int) -> None:
        """A run ended; `said` from byte `begin` on is what it printed, if not on the terminal."""

    def look(self, running: Sequence[Job]) -> None:
        """Time to look at the files again; called every `refresh_s` seconds."""

    def stopping(self, number: int, running: Sequence[Job]) -> None:
        """A signal asked to end."""


@dataclass
class _Child:
    job: Job
    slot: int
    process: Process
    output: Path | None
    begin: int
    attempts: int


class Runner:
    """Runs jobs in their order, those first that no other process trains."""

    def __init__(
        self, jobs: Sequence[Job], slots: Slots, watcher: Watcher, *, retry: bool, quiet: bool
    ) -> None:
        self._pending = list(jobs)
        self._slots = slots
        self._watcher = watcher
        self._retry = retry
        self._quiet = quiet
        self._running: list[_Child] = []
        self._outcomes: dict[int, Outcome] = {}
        self._overtaken: dict[int, int] = {}
        self._stop: int | None = None

    def run(self) -> list[Outcome]:
        """Train what is to be trained; call it from the main thread.

        A stop signal is passed on, nothing new starts, and what runs is waited for, however long it
        saves. Returns the outcomes in the order of the jobs, without those that never came to be.
        """
        with signals_as_bytes() as signals, ExitStack() as stack:
            stack.callback(self._end_all)
            while True:
                self._reap()
                if self._stop is None:
                    self._start(signals)
                if not self._running and (self._stop is not None or not self._pending):
                    break
                self._listen(signals)
        return [self._outcomes[number] for number in sorted(self._outcomes)]

    @property
    def stop_code(self) -> int | None:
        """The exit code a stop signal asks for; None if none came."""
        if self._stop is None:
            return None
        by_user = self._stop == signal.SIGINT
        return (InterruptedError_ if by_user else SavedForRequeueError).exit_code

    def _start(self, signals: socket.socket) -> None:
        """Start what there is room for and nobody else trains."""
        for job in list(self._pending):
            status = job.directory.status()
            if status is Status.RUNNING or self._trains(job):
                continue
            if status is Status.DONE:
                self._settle(job, 0, trained=False)
            elif status is Status.FAILED and not self._retry:
                failure = job.directory.failure() or {"exit_code": Dsv3Error.exit_code}
                self._watcher.failed_before(job)
                self._settle(job, int(failure["exit_code"]), trained=False)
            elif len(self._running) < self._slots.count:
                self._start_one(job)
                # A terminal's signal that came before the child was there did not reach it.
                for number in stops_so_far(signals):
                    self._ask_to_stop(number, forward=True)
                if self._stop is not None:
                    return
        if not self._running and self._pending:
            self._watcher.waits(self._pending)

    def _trains(self, job: Job) -> bool:
        """Whether this process trains that directory already: an arm that is no other run."""
        return any(child.job.directory.path == job.directory.path for child in self._running)

    def _start_one(self, job: Job) -> None:
        slot = min(set(range(self._slots.count)) - {child.slot for child in self._running})
        self._watcher.starts(job)
        try:
            path = None if self._slots.count == 1 else job.directory.logs / OUTPUT
            attempts = len(job.directory.attempts())
            with ExitStack() as stack:
                output = None if path is None else stack.enter_context(_append(path))
                begin = 0 if output is None else output.tell()
                process = start_one(
                    job.directory,
                    job.directory.config_file(job.config),
                    quiet=self._quiet,
                    environment={**os.environ, **self._slots.environments[slot]},
                    output=output,
                )
        except Dsv3Error as error:
            self._watcher.cannot(job, error)
            self._settle(job, error.exit_code, trained=False)
            return
        self._pending.remove(job)
        self._running.append(_Child(job, slot, process, path, begin, attempts))

    def _reap(self) -> None:
        for child in list(self._running):
            code = child.process.poll()
            if code is None:
                continue
            self._running.remove(child)
            job = child.job
            if self._was_overtaken(child, code):
                self._pending.append(job)
                self._pending.sort(key=lambda each: each.number)
                continue
            if job.directory.done_path.exists():
                code = 0
            elif code < 0:  # a signal killed the launcher; its ranks save, and end
                code = RankLostError.exit_code
            elif code in (0, 1):  # without a result, or without a named error
                code = Dsv3Error.exit_code
            outcome = self._settle(job, code, trained=True)
            self._watcher.ended(outcome, child.output, child.begin)

    def _was_overtaken(self, child: _Child, code: int) -> bool:
        """Whether another process was quicker to the lock, after we had looked."""
        if code != LockHeldError.exit_code:
            return False
        directory, number = child.job.directory, child.job.number
        if directory.status() in (Status.RUNNING, Status.DONE):
            return True
        # It may have ended since. Who cannot start for another reason is not asked for ever.
        self._overtaken[number] = self._overtaken.get(number, 0) + 1
        nobody_began = len(directory.attempts()) == child.attempts
        return nobody_began and self._overtaken[number] < _MOST_OVERTAKEN

    def _settle(self, job: Job, exit_code: int, *, trained: bool) -> Outcome:
        if job in self._pending:
            self._pending.remove(job)
        self._outcomes[job.number] = outcome = Outcome(job, exit_code, trained)
        return outcome

    def _listen(self, signals: socket.socket) -> None:
        """Sleep until a child ends, a signal comes, or it is time to look at files again."""
        others = POLL_S if self._pending and len(self._running) < self._slots.count else None
        periods = [period for period in (others, self._watcher.refresh_s or None) if period]
        signals.settimeout(min(periods, default=None))
        try:
            numbers = signals.recv(64)
        except TimeoutError:
            numbers = b""
        finally:
            signals.settimeout(None)
        for number in numbers:
            if number != signal.SIGCHLD:
                self._ask_to_stop(number, forward=not sent_by_terminal(number))
        self._watcher.look([child.job for child in self._running])

    def _ask_to_stop(self, number: int, *, forward: bool) -> None:
        if self._stop is None:
            self._stop = number
            self._watcher.stopping(number, [child.job for child in self._running])
        if forward:
            for child in self._running:
                child.process.send_signal(number)

    def _end_all(self) -> None:
        """Leave nobody behind, if this process meets a defect of its own."""
        for child in self._running:
            child.process.send_signal(signal.SIGTERM)
        for child in self._running:
            child.process.wait()


def exit_code_of(codes: Sequence[int], jobs: int, stop_code: int | None) -> int:
    """The exit code of `jobs` runs of which those that ended did so with `codes`.

    Why it stopped, else 7 if some of several failed, else 0.
    """
    stopped = [code for code in codes if code in STOPPED]
    if stop_code is not None and (stopped or len(codes) < jobs):
        return stop_code
    if stopped:
        return stopped[0]
    if not any(codes):
        return 0
    return ArmsFailedError.exit_code if jobs > 1 else codes[0]


def _append(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(exist_ok=True)
        return path.open("ab")
    except OSError as error:
        raise storage_error(path, error, "make the run directory writable") from error
