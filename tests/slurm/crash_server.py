"""Runs commands under a tracer that kills them before their n-th state-changing call.

`crash_server.py MODULE...` imports the modules once, then reads a request in JSON from each
line and answers in one: every run is a fork that has them already. `crashes.py` is the other end.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import astuple, dataclass, field
from types import FrameType
from typing import Any

from slurm.syscalls import (
    CONT,
    EVENT_EXEC,
    EVENT_SECCOMP,
    OPTIONS,
    SETOPTIONS,
    WALL,
    Made,
    be_traced,
    process_of,
    seen,
    trace,
)

LINGER_S = 5.0  # how long what the command left running may go on


@dataclass
class Trace:
    """One run: what is to happen, and what was seen."""

    root: int
    kill_at: int | None
    alone: bool
    calls: list[Made] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    executed: set[int] = field(default_factory=set)  # processes that became another program
    killed: bool = False
    lingered: bool = False
    code: int | None = None

    def follow(self) -> None:
        """Until nothing of it is left."""
        self.threads.add(self.root)
        while self.threads:
            try:
                pid, status = os.waitpid(-1, WALL)
            except ChildProcessError:
                return
            if os.WIFSTOPPED(status):
                self._stopped(pid, os.WSTOPSIG(status), status >> 16)
            else:
                self._ended(pid, os.waitstatus_to_exitcode(status))

    def end_all(self) -> None:
        """Kill every process that is left."""
        for pid in {process_of(thread) for thread in self.threads}:
            _kill(pid)

    def _ended(self, pid: int, code: int) -> None:
        self.threads.discard(pid)
        if pid == self.root:
            self.code = code
            signal.setitimer(signal.ITIMER_REAL, LINGER_S)

    def _stopped(self, pid: int, number: int, event: int) -> None:
        deliver = 0
        if pid not in self.threads:
            self.threads.add(pid)  # its first stop
        elif event == EVENT_SECCOMP:
            self._about_to_call(pid)
        elif event == EVENT_EXEC and process_of(pid) != self.root:
            self.executed.add(process_of(pid))
        elif event == 0:
            deliver = number
        with contextlib.suppress(ProcessLookupError):  # killed
            trace(CONT, pid, 0, deliver)

    def _about_to_call(self, pid: int) -> None:
        try:
            call = seen(pid)
        except OSError:
            return  # killed by another thread
        if call is None or self.killed:
            return
        if len(self.calls) == self.kill_at:
            self.killed = True
            for process in {process_of(thread) for thread in self.threads}:
                if not self.alone or process not in self.executed:
                    _kill(process)
        self.calls.append(call)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def child(request: dict[str, Any]) -> int:
    """In the fork: the command, from its first call on under the tracer."""
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    for number, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(name, flags, 0o644), number)
    be_traced()
    if request["main"] is None:
        os.execvpe(request["argv"][0], request["argv"], request["env"])
    module, _, function = request["main"].partition(":")
    sys.argv = request["argv"]
    try:
        code = getattr(importlib.import_module(module), function)()
    except SystemExit as error:
        code = error.code
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """One run and its outcome."""
    pid = os.fork()
    if pid == 0:
        code = 70
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        try:
            code = child(request)
        except BaseException:  # noqa: BLE001 - as the interpreter itself
            traceback.print_exc()
            code = 1
        finally:
            os._exit(code)
    run = Trace(pid, request["kill_at"], request["alone"])

    def too_long(number: int, frame: FrameType | None) -> None:
        run.lingered = True
        run.end_all()

    signal.signal(signal.SIGALRM, too_long)
    assert os.WIFSTOPPED(os.waitpid(pid, 0)[1])
    trace(SETOPTIONS, pid, 0, OPTIONS)
    signal.setitimer(signal.ITIMER_REAL, request["timeout_s"])
    trace(CONT, pid, 0, 0)
    started = time.monotonic()
    run.follow()
    signal.setitimer(signal.ITIMER_REAL, 0)
    return {
        "code": run.code,
        "killed": run.killed,
        "lingered": run.lingered,
        "calls": [astuple(call) for call in run.calls],
        "seconds": time.monotonic() - started,
    }


def main() -> None:
    """Serve until standard input ends."""
    for module in sys.argv[1:]:
        importlib.import_module(module)
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing that a module prints may be taken for an answer
    for line in requests:
        answers.write(json.dumps(serve(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
