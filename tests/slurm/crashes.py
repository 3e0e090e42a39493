"""kill -9 of a command before each of its state-changing system calls, one after the other.

    crashes = Crashes("dsv3.commands.train")              # imported once
    for crash in crashes.each(prepare):                   # one run for each call
        ...                                               # the state that is left; ask again

Calls are those the kernel sees, of the command and of what it starts: files opened for writing,
written, renamed, synced, removed; directories made; programs executed; bytes sent. Reads, pipes and
what goes to /dev or /proc change nothing that outlives the command, and are not counted.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from slurm.syscalls import Made

TESTS = Path(__file__).resolve().parent.parent
ENOUGH = 2000  # more calls than any command here makes


@dataclass(frozen=True)
class Command:
    """What is run: `main` in a fork of the server, or a program by its `argv` if there is none."""

    argv: list[str]
    cwd: Path
    main: str | None = "dsv3.cli:main"
    env: dict[str, str] = field(default_factory=dict)
    timeout_s: float = 60.0


@dataclass(frozen=True)
class Outcome:
    """How it ended: an exit code, or -9 where it was killed; and the calls up to there."""

    code: int
    killed: bool
    calls: list[Made]
    stdout: str
    stderr: str
    # Something that it started had to be ended after it, or it took longer than it may.
    lingered: bool

    @property
    def at(self) -> Made:
        """The call that was not made."""
        assert self.killed
        return self.calls[-1]


class Crashes:
    """The server that runs commands; `close` ends it."""

    def __init__(self, *modules: str) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "slurm.crash_server", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{TESTS.parent / 'src'}:{TESTS}"},
        )

    def close(self) -> None:
        """End the server."""
        self._server.communicate(timeout=30)

    def run(self, command: Command, *, kill_at: int | None = None, alone: bool = False) -> Outcome:
        """Run a command, and kill it before call `kill_at` (the first is 0) if it gets there.

        With `alone` only the command dies, and programs that it started go on, as after kill -9 of
        one process; else everything dies at that instant, as when the machine does.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        out, err = (command.cwd / f".crash-{name}" for name in ("stdout", "stderr"))
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **command.env}
        request = {
            "argv": command.argv, "cwd": str(command.cwd), "main": command.main, "env": env,
            "stdout": str(out), "stderr": str(err), "kill_at": kill_at, "alone": alone,
            "timeout_s": command.timeout_s,
        }  # fmt: skip
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        line = self._server.stdout.readline()
        assert line, f"the server of crashes ended with {self._server.wait()}"
        said = json.loads(line)
        return Outcome(
            code=said["code"],
            killed=said["killed"],
            calls=[Made(*each) for each in said["calls"]],
            stdout=out.read_text(errors="replace"),
            stderr=err.read_text(errors="replace"),
            lingered=said["lingered"],
        )

    def each(
        self,
        prepare: Callable[[int], Command],
        *,
        alone: bool = False,
        counts: Callable[[Made], bool] = lambda call: True,
    ) -> Iterator[Outcome]:
        """A killed run for every call that `counts`, in the order of the command's calls.

        `prepare` is handed the number of the call and makes a fresh place for it; a run that goes
        through first, number -1, shows which calls there are. Ends with the run that outlives
        them all, which has to.
        """
        rehearsal = self.run(prepare(-1))
        assert not rehearsal.lingered, rehearsal.stderr
        for number in range(ENOUGH):
            if number < len(rehearsal.calls) and not counts(rehearsal.calls[number]):
                continue
            outcome = self.run(prepare(number), kill_at=number, alone=alone)
            if not outcome.killed:
                assert number >= len(rehearsal.calls), (
                    "runs differ: it made fewer calls than before"
                )
                return
            yield outcome
        raise AssertionError(f"more than {ENOUGH} calls")
