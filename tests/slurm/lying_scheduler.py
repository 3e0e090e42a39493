"""A scheduler whose programs lie: accepts and reports a time-out, hangs, prints garbage, forgets.

What it truly accepted is on record, so that a test can count duplicates and losses. Lies come from
a seed, or from what a test says is to come next. The server is in this process; its programs are
small scripts that speak to it.
"""

import enum
import json
import random
import socket
import socketserver
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from slurm.liar_answers import Answer, answer_query, no_controller
from slurm.liar_client import encoded, write_programs
from slurm.liar_jobs import Accepted
from slurm.liar_options import Options
from slurm.liar_sbatch import Refusal, accept, is_test_only, wants_stdin

TIMED_OUT = "Socket timed out on send/recv operation"
GARBAGE = (
    b"\x00\xff\xfe<html><body>502 Bad Gateway</body></html>\n",
    b"Submitted batch job\n",
    b"slurm: warning: motd: maintenance on 2026-12-24, see 4711\n",
    b"\n\n\n",
    b"12a|??|\x1b[31m|\xc3\x28|\n",
    b"sbatch: lua: Submitted job to the default partition\n99999999999999999999\n",
)
REFUSALS = (
    "Invalid account or account/partition combination specified",
    "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
    "Requested node configuration is not available",
)


class Lie(enum.Enum):
    """What a program does instead of its work, or beside it."""

    TRUTH = "truth"
    SLOW = "slow"  # the truth, late
    ACCEPT_TIMEOUT = "accept, and report a time-out"
    ACCEPT_HANG = "accept, and never answer"
    ACCEPT_GARBAGE = "accept, and print garbage"
    ACCEPT_SILENT = "accept, and print nothing"
    REFUSE = "refuse, and say so"
    REFUSE_SILENT = "refuse, exit 1, and print nothing"
    TIMEOUT = "do nothing, and report a time-out"
    HANG = "do nothing, and never answer"
    GARBAGE = "do nothing, and print garbage"
    UNREACHABLE = "no controller"


SBATCH_ONLY = {lie for lie in Lie if lie.name.startswith(("ACCEPT", "REFUSE"))}
ACCEPTING = {Lie.TRUTH, Lie.SLOW} | {lie for lie in Lie if lie.name.startswith("ACCEPT")}
EVERY_LIE = {lie: 1.0 for lie in Lie if lie not in {Lie.TRUTH, Lie.HANG, Lie.ACCEPT_HANG}}


@dataclass(frozen=True)
class Lies:
    """How often it lies, and how: `weights` against `truth`, drawn from `seed` for each call."""

    seed: int = 0
    truth: float = 1.0
    weights: dict[Lie, float] = field(default_factory=dict)
    # An accepted job may stay unseen for so many look-ups and seconds (each up to ...).
    forget: float = 0.0
    forget_looks: int = 3
    forget_s: float = 0.0
    # A controller that is away stays away for up to so many calls.
    unreachable_calls: int = 3
    slow_s: float = 0.05


@dataclass(frozen=True)
class Call:
    """One call of a program, as it was."""

    program: str
    arguments: list[str]
    environment: Options
    lie: Lie
    code: int | None  # None: it was never answered


class LyingScheduler:
    """Serve from `start` to `close`; `env` puts its programs before others of that name."""

    def __init__(self, directory: Path, lies: Lies | None = None, *, release: str = "22.05.8"):
        self.directory = directory
        self.programs = directory / "bin"
        self.lies = lies or Lies()
        self.release = release
        self.accounting = False
        self.accepted: list[Accepted] = []
        self.calls: list[Call] = []
        self._draw = random.Random(self.lies.seed)
        self._said: dict[str, deque[Lie]] = {}
        self._away = 0
        self._next_id = 100
        self._lock = threading.RLock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.liar = self

    def start(self) -> "LyingScheduler":
        """Begin to answer."""
        write_programs(self.programs, self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def close(self) -> None:
        """End, and hang up on every program that waits."""
        self._server.shutdown()
        self._server.hang_up()
        self._server.server_close()

    def path(self, before: str) -> str:
        """PATH with the programs of this scheduler first."""
        return f"{self.programs}:{before}"

    # What a test does

    def will(self, program: str, *lies: Lie) -> None:
        """Say what the next calls of a program meet, one after the other; then chance again."""
        self._said.setdefault(program, deque()).extend(lies)

    def away(self, calls: int) -> None:
        """No controller for so many calls, whatever the program."""
        self._away = calls

    def honest(self) -> None:
        """No lies from now on, and nothing hidden: what a next day finds."""
        with self._lock:
            self.lies = Lies()
            self._said.clear()
            self._away = 0
            for job in self.accepted:
                job.hidden_looks, job.hidden_until = 0, 0.0

    def move(self, state: str, *, job: int | None = None, index: int | None = None) -> None:
        """Put tasks into a state: `RUNNING`, `COMPLETED`, `TIMEOUT`, ..."""
        with self._lock:
            for each in self.accepted:
                for task in each.tasks:
                    if job in (None, each.id) and index in (None, task.index):
                        task.state = state
                        task.node = "" if state == "PENDING" else "node1"

    def purge(self, job: int | None = None) -> None:
        """Let jobs leave the controller's memory (MinJobAge); sacct alone knows them then."""
        for each in self.accepted:
            each.purged = each.purged or job in (None, each.id)

    def count(self, key: Callable[[Accepted], str]) -> Counter[str]:
        """Accepted submissions that have not been cancelled as a whole, by a key of each."""
        return Counter(
            key(job)
            for job in self.accepted
            if any(task.state != "CANCELLED" for task in job.tasks)
        )

    # What a program meets

    def answer(self, program: str, arguments: list[str], environment: Options, directory: str,
               read_stdin: Callable[[], str]) -> Answer | None:  # fmt: skip
        """The answer to one call; None: none, ever."""
        with self._lock:
            lie = self._lie_for(program)
            said = self._say(lie, program, arguments, environment, directory, read_stdin)
            self._record(Call(program, arguments, environment, lie, said.code if said else None))
        if lie is Lie.SLOW:
            time.sleep(self.lies.slow_s)
        return said

    def _lie_for(self, program: str) -> Lie:
        if self._away > 0:
            self._away -= 1
            return Lie.UNREACHABLE
        if said := self._said.get(program):
            return said.popleft()
        fit = {
            lie: weight
            for lie, weight in self.lies.weights.items()
            if program == "sbatch" or lie not in SBATCH_ONLY
        }
        [lie] = self._draw.choices([Lie.TRUTH, *fit], [self.lies.truth, *fit.values()])
        if lie is Lie.UNREACHABLE:
            self._away = self._draw.randrange(self.lies.unreachable_calls)
        return lie

    def _say(self, lie: Lie, program: str, arguments: list[str], environment: Options,
             directory: str, read_stdin: Callable[[], str]) -> Answer | None:  # fmt: skip
        if program == "sacct" and not self.accounting:
            lie = Lie.TRUTH  # it says so without asking anybody
        if lie is Lie.UNREACHABLE:
            return no_controller(program, arguments)
        truth = None
        if program == "sbatch":
            stdin = read_stdin() if wants_stdin(arguments) else ""
            if lie in ACCEPTING or is_test_only(arguments):
                truth = self._submit(arguments, environment, directory, stdin)
        elif lie in ACCEPTING:
            truth = answer_query(program, arguments, self._visible(program), self)
        if truth is not None and (lie in {Lie.TRUTH, Lie.SLOW} or truth.code):
            return truth  # a lie about what was refused would be none
        return self._lied(lie, program)

    def _lied(self, lie: Lie, program: str) -> Answer | None:
        if lie in {Lie.HANG, Lie.ACCEPT_HANG}:
            return None
        if lie in {Lie.GARBAGE, Lie.ACCEPT_GARBAGE}:
            return Answer(0, self._draw.choice(GARBAGE))
        if lie is Lie.ACCEPT_SILENT:
            return Answer(0)
        if lie is Lie.REFUSE_SILENT:
            return Answer(1)
        if lie is Lie.REFUSE:
            why = self._draw.choice(REFUSALS)
            return Answer(1, error=f"sbatch: error: Batch job submission failed: {why}\n")
        return no_controller(program, [], TIMED_OUT)

    def _submit(
        self, arguments: list[str], environment: Options, directory: str, stdin: str
    ) -> Answer:
        try:
            job, said = accept(arguments, environment, Path(directory), stdin, self._next_id)
        except Refusal as refusal:
            return Answer(refusal.code, error=f"{refusal}\n")
        if job is not None:
            self._next_id += len(job.tasks)
            if self._draw.random() < self.lies.forget:
                job.hidden_looks = self._draw.randint(1, max(1, self.lies.forget_looks))
                job.hidden_until = time.monotonic() + self._draw.random() * self.lies.forget_s
            self.accepted.append(job)
            with (self.directory / "accepted.jsonl").open("a") as file:
                record = {"id": job.id, "name": job.name, "comment": job.comment}
                file.write(json.dumps(record | {"array": job.options.get("array")}) + "\n")
        return said

    def _visible(self, program: str) -> list[Accepted]:
        shown = []
        for job in self.accepted:
            if job.hidden_looks > 0 or time.monotonic() < job.hidden_until:
                job.hidden_looks -= 1
            elif program == "sacct" or not job.purged:
                shown.append(job)
        return shown

    def _record(self, call: Call) -> None:
        self.calls.append(call)
        with (self.directory / "calls.jsonl").open("a") as file:
            file.write(json.dumps([call.program, call.arguments, call.lie.name, call.code]) + "\n")


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128
    liar: LyingScheduler

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.open: set[socket.socket] = set()

    def hang_up(self) -> None:
        """On everybody who waits."""
        for each in list(self.open):
            each.close()


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        """One call."""
        self.server.open.add(self.connection)
        try:
            self._answer()
        except (ConnectionError, EOFError):
            pass  # the program was killed
        finally:
            self.server.open.discard(self.connection)

    def _answer(self) -> None:
        program, directory, count = (self._field() for _ in range(3))
        arguments = [self._field() for _ in range(int(count))]
        environment = {}
        while variable := self._field():
            name, _, value = variable.partition("=")
            environment[name] = value
        said = self.server.liar.answer(program, arguments, environment, directory, self._stdin)
        if said is None:
            self.rfile.read(1)  # until it is killed
        else:
            self.wfile.write(encoded(said.code, said.error.encode(), said.output))

    def _stdin(self) -> str:
        self.wfile.write(b"stdin\n")
        return self._field()

    def _field(self) -> str:
        data = bytearray()
        while (byte := self.rfile.read(1)) != b"\0":
            if not byte:
                raise EOFError
            data += byte
        return data.decode("utf-8", "surrogateescape")
