"""Keeps one rank of a job: `python -m dsv3.launch.slurm.task SUBMISSION INDEX`; no Hydra, no torch.

srun starts one for every rank. It tells the rank its place, passes signals on, watches its signs of
life, and says how it ended in a file: on several machines there is no memory to share with who
judges. Its exit code is 0 for a rank that saved and stopped, too: srun would end the others.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from dsv3.config.root import RunConfig
from dsv3.errors import Dsv3Error, RankLostError
from dsv3.files import refused
from dsv3.launch.environment import rank_environment
from dsv3.launch.group import GOOD, Ending, Member
from dsv3.launch.process import start_member
from dsv3.launch.signals import signals_as_bytes, stops_so_far
from dsv3.launch.slurm.endings import NO_PROCESS, start_directory, write_ending
from dsv3.launch.slurm.place import RankPlace, place_from
from dsv3.launch.stacks import ask, forget_stacks
from dsv3.launch.submission import Submission
from dsv3.launch.watchdog import Watchdog
from dsv3.machine import usable_cores
from dsv3.runs.board import Board, Failure
from dsv3.runs.directory import RunDirectory
from dsv3.runs.rank import (
    BOARD_VARIABLE,
    LOCK_PATIENCE_VARIABLE,
    PREPARED_ONLY_VARIABLE,
    RANK_MODULE,
    STORE_VARIABLE,
    RankArguments,
    log_name,
)

LOCK_PATIENCE_S = 120
"""NFS keeps the lock of a machine it lost for its lease, 90 s by default."""
_WAITING_S = 10.0
"""A rank that only waits for another one is given so much longer than that one."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rank to its end; 0, or the exit code of what ended it."""
    submission, index = sys.argv[1:] if argv is None else argv
    of_job = Submission(Path(submission)).of_job(int(index))
    endings = start_directory(of_job)
    if Submission(Path(submission)).is_cancelled(int(index)):
        return 0  # asked to save before there was anybody to hear it
    try:
        planned = Submission(Path(submission)).intent().runs[int(index)]
        run = RunDirectory(planned.directory)
        config = run.config(planned.config)
        place = place_from(os.environ, world_size=config.parallelism.world_size)
        keeper = Keeper(run, config, place)
        keeper.run_to_end(RankArguments(run.path, planned.config, quiet=False))
        return keeper.report(endings)
    except (Dsv3Error, OSError) as error:
        named = error if isinstance(error, Dsv3Error) else refused(error) or Dsv3Error(str(error))
        return _say(endings, named)


class Keeper:
    """One rank from its start to its end."""

    def __init__(self, run: RunDirectory, config: RunConfig, place: RankPlace) -> None:
        self._run = run
        self._config = config
        self._place = place
        self._rank = place.rank
        self._ending = Ending()

    def run_to_end(self, arguments: RankArguments) -> None:
        """Start the rank and wait for it; no process is left however this ends."""
        rank, timeout_s = self._rank, self._config.run.heartbeat_timeout
        forget_stacks(self._run.logs, [rank])
        board = Board.create(self._place.world_size, limit_s=self._config.run.startup_timeout)
        environment = self._environment() | {BOARD_VARIABLE: f"{board.descriptor}:{timeout_s}"}
        command = [sys.executable, "-P", "-m", RANK_MODULE, *arguments.to_argv()]
        with contextlib.ExitStack() as stack:
            signals = stack.enter_context(signals_as_bytes())
            output = None
            if rank != 0:
                self._run.logs.mkdir(exist_ok=True)
                output = stack.enter_context((self._run.logs / log_name(rank)).open("ab"))
            process = start_member(
                command, environment, descriptors=[board.descriptor], output=output
            )
            member = Member(rank, process)
            try:
                for number in stops_so_far(signals):
                    process.send_signal(number)
                watchdog = Watchdog(board, timeout_s)
                while process.poll() is None and not self._gives_up(member, watchdog):
                    signals.settimeout(max(watchdog.rest_s(), 0.001))
                    with contextlib.suppress(TimeoutError):
                        for number in signals.recv(64):
                            if number != signal.SIGCHLD:
                                process.send_signal(number)
            finally:
                if process.poll() is None:
                    member.killed_by_launcher = True
                    process.kill()
                member.code = process.wait()
                member.sign, member.failure = board.read(rank), board.failure(rank)
                self._ending.members.append(member)

    def report(self, endings: Path) -> int:
        """Say how the rank ended where there is something to say; the exit code for srun."""
        (member,) = self._ending.members
        # A signal that comes twice may kill a rank that has said its last word.
        code = member.code if member.failure is None else member.failure.error.exit_code
        good = code in GOOD and self._ending.silence is None
        if code != 0 and (self._rank == 0 or not good):
            write_ending(endings, member, self._ending)
        if good:
            return 0
        named = member.failure is not None and self._ending.silence is None
        return code if named and code is not None else RankLostError.exit_code

    def _gives_up(self, member: Member, watchdog: Watchdog) -> bool:
        """Whether the rank is silent, and not because it waits for another one that is."""
        silences = watchdog.look([self._rank])
        if not silences:
            return False
        (silence,) = silences
        places = ask({self._rank: member.process.pid}, self._run.logs)
        waits = places[self._rank].waits_for_ranks
        if waits and silence.seconds < silence.sign.limit_s * 1.5 + _WAITING_S:
            return False
        self._ending.silence, self._ending.whereabouts = silence, places
        return True

    def _environment(self) -> dict[str, str]:
        place = self._place
        own = rank_environment(self._config, os.environ, threads_each=self._threads(os.environ))
        return own | {
            **place.variables(),
            STORE_VARIABLE: place.store,
            LOCK_PATIENCE_VARIABLE: str(LOCK_PATIENCE_S),
            PREPARED_ONLY_VARIABLE: "1",
        }

    def _threads(self, environment: Mapping[str, str]) -> int:
        if self._config.launcher.threads_per_rank is not None:
            return self._config.launcher.threads_per_rank
        local = self._place.local_world_size
        if "TORCHELASTIC_RUN_ID" not in environment and "SLURM_CPUS_PER_TASK" in environment:
            return int(environment["SLURM_CPUS_PER_TASK"])
        return max(1, usable_cores() // local)


def _say(endings: Path, error: Dsv3Error) -> int:
    """Report an error met before there was a rank."""
    rank = int(os.environ.get("SLURM_PROCID", os.environ.get("RANK", "0")))
    failure = Failure(time.time(), error, lasting=False)
    with contextlib.suppress(Dsv3Error, OSError):
        write_ending(endings, Member(rank, NO_PROCESS, code=error.exit_code, failure=failure))
    with contextlib.suppress(OSError):
        sys.stderr.writelines(f"{line}\n" for line in error.lines())
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
