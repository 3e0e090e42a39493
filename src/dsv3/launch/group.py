"""Several ranks on this machine: started together, watched, and ended together."""

import contextlib
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from dsv3.config.root import RunConfig
from dsv3.errors import InterruptedError_, SavedForRequeueError
from dsv3.files import storage_error
from dsv3.launch.environment import LOOPBACK, member_environment
from dsv3.launch.process import Process, start_member
from dsv3.launch.signals import sent_by_terminal, signals_as_bytes, stops_so_far
from dsv3.launch.stacks import Whereabouts, ask, forget_stacks
from dsv3.launch.watchdog import Silence, Watchdog
from dsv3.runs.board import STARTING, Board, Failure, Sign
from dsv3.runs.directory import RunDirectory
from dsv3.runs.rank import BOARD_VARIABLE, STORE_SOCKET_VARIABLE, log_name

GRACE_S = 8.0
"""What the other ranks get to put things in order once one has failed or is lost."""
STARTING_GRACE_S = 2.0
"""The same for ranks that are still starting: enough to say what they met."""
GOOD = (0, SavedForRequeueError.exit_code, InterruptedError_.exit_code)


@dataclass
class Member:
    """One rank of the group; the code is None while it lives, negative if a signal killed it."""

    rank: int
    process: Process
    code: int | None = None
    killed_by_launcher: bool = False
    sign: Sign | None = None
    failure: Failure | None = None


@dataclass
class Ending:
    """How a group ended: its members in the order in which they did.

    `silence` and `whereabouts` if it was ended because a rank was silent.
    """

    members: list[Member] = field(default_factory=list)
    silence: Silence | None = None
    whereabouts: dict[int, Whereabouts] = field(default_factory=dict)


def run_group(
    run: RunDirectory, config: RunConfig, command: Sequence[str], environment: Mapping[str, str]
) -> Ending:
    """Run `command` as every rank of the layout until all of them have ended.

    When one fails, dies or is silent for longer than it said, the others are asked to end and
    killed after `GRACE_S`. No process is left however this function ends; if this process is
    killed, the ranks see to it themselves.
    """
    forget_stacks(run.logs, range(config.parallelism.world_size))
    with _board(config) as board, signals_as_bytes() as signals:
        group = _Group(run, board, Watchdog(board, config.run.heartbeat_timeout), signals)
        try:
            group.start(config, command, environment)
            group.watch()
            group.end()
        finally:
            group.kill()
        return group.ending


@contextlib.contextmanager
def _board(config: RunConfig) -> Iterator[Board]:
    board = Board.create(config.parallelism.world_size, limit_s=config.run.startup_timeout)
    try:
        yield board
    finally:
        board.close()


class _Group:
    def __init__(
        self, run: RunDirectory, board: Board, watchdog: Watchdog, signals: socket.socket
    ) -> None:
        self._run = run
        self._board = board
        self._watchdog = watchdog
        self._signals = signals
        self._alive: list[Member] = []
        self.ending = Ending()

    def start(
        self, config: RunConfig, command: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        """Start all ranks; only the first has the terminal."""
        ranks = config.parallelism.world_size
        board = self._board.descriptor
        # The store of the ranks is served from this socket. It listens before any rank runs, so
        # the port is ours without a gap, and on the loopback interface: the store trusts everyone.
        with socket.create_server((LOOPBACK, 0), backlog=ranks) as store:
            for rank in range(ranks):
                own = member_environment(environment, rank, ranks, store.getsockname()[1])
                own[BOARD_VARIABLE] = f"{board}:{config.run.heartbeat_timeout}"
                own[STORE_SOCKET_VARIABLE] = str(store.fileno() if rank == 0 else -1)
                descriptors = [board, store.fileno()] if rank == 0 else [board]
                with self._output(rank) as output:
                    process = start_member(command, own, descriptors=descriptors, output=output)
                self._alive.append(Member(rank, process))
        for number in stops_so_far(self._signals):  # the terminal's, too: not all were there yet
            self._pass_on(number)

    def watch(self) -> None:
        """Pass signals on until all ranks have ended or one has to be given up."""
        while self._alive:
            self._listen(self._watchdog.rest_s())
            self._reap()
            if any(member.code not in GOOD for member in self.ending.members):
                return
            if self._watchdog.look([member.rank for member in self._alive]):
                self._find_lost()
                return

    def end(self) -> None:
        """Ask whoever is left to end; who has hardly begun gets less time, who hangs none."""
        began_s = time.monotonic()
        for member in self._alive:
            if self.ending.silence is not None and member.rank == self.ending.silence.rank:
                self._kill(member)
            else:
                member.process.send_signal(signal.SIGTERM)
        self._await_until(began_s + STARTING_GRACE_S)
        for member in self._alive:
            if self._board.read(member.rank).phase == STARTING:
                self._kill(member)
        self._await_until(began_s + GRACE_S)

    def kill(self) -> None:
        """Kill whoever is left and wait until it is gone."""
        for member in self._alive:
            self._kill(member)
        for member in self._alive:
            member.process.wait()
        self._reap()

    def _await_until(self, deadline_s: float) -> None:
        self._reap()
        while self._alive and (rest_s := deadline_s - time.monotonic()) > 0:
            self._listen(rest_s)
            self._reap()

    def _listen(self, timeout_s: float) -> None:
        """Pass on what comes within `timeout_s`; the end of a rank is among it."""
        self._signals.settimeout(max(timeout_s, 0.001))
        try:
            numbers = self._signals.recv(64)
        except TimeoutError:
            return
        for number in numbers:
            if number != signal.SIGCHLD and not sent_by_terminal(number):
                self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        for member in self._alive:
            member.process.send_signal(number)

    def _reap(self) -> None:
        for member in list(self._alive):
            member.code = member.process.poll()
            if member.code is not None:
                member.sign = self._board.read(member.rank)
                member.failure = self._board.failure(member.rank)
                self._alive.remove(member)
                self.ending.members.append(member)

    def _find_lost(self) -> None:
        """Which rank is silent because of itself, not because it waits for another one.

        Ranks that meet in every step fall silent together. One that is halted cannot be waiting;
        of the others, the one that is not in a call to the rest; else the first to fall silent.
        """
        now_s = time.monotonic()
        silent = {each.rank: self._watchdog.silence(each.rank, now_s) for each in self._alive}
        places = ask({member.rank: member.process.pid for member in self._alive}, self._run.logs)

        def blame(rank: int) -> tuple[bool, bool, bool, float]:
            place, silence = places[rank], silent[rank]
            overdue = silence.seconds > silence.sign.limit_s / 2
            dumb = overdue and not place.frames
            return (place.halted, dumb, overdue and not place.waits_for_ranks, silence.seconds)

        lost = max(places, key=blame)
        self.ending.silence, self.ending.whereabouts = silent[lost], places

    def _kill(self, member: Member) -> None:
        if member.process.poll() is None:
            member.killed_by_launcher = True
            member.process.kill()

    def _output(self, rank: int) -> contextlib.AbstractContextManager[IO[bytes] | None]:
        """What a rank prints goes to its log, beside what it logs; the first has the terminal."""
        if rank == 0:
            return contextlib.nullcontext()
        path = self._run.logs / log_name(rank)
        try:
            path.parent.mkdir(exist_ok=True)
            return path.open("ab")
        except OSError as error:
            raise storage_error(path, error, "make the run directory writable") from error
