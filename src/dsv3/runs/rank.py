"""What a rank, or an evaluation, is told when it is started; written by launchers, read by it."""

import argparse
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

RANK_MODULE = "dsv3.train.worker"
EVALUATION_MODULE = "dsv3.train.evaluator"
LAUNCHER_PID_VARIABLE = "DSV3_LAUNCHER_PID"
BOARD_VARIABLE = "DSV3_BOARD"
"""Descriptor of the board, and the seconds a rank may be silent: `7:30.0`."""
STORE_SOCKET_VARIABLE = "DSV3_STORE_SOCKET"
"""Descriptor of a listening socket for the store of the ranks; -1 for those that connect to it."""
STORE_VARIABLE = "DSV3_STORE"
"""Of ranks on several machines: `serve` if rank 0 serves the store at MASTER_ADDR and MASTER_PORT,
`join` if something else does."""
LOCK_PATIENCE_VARIABLE = "DSV3_LOCK_PATIENCE_S"
"""Seconds to wait for the run's lock: a file server may hold that of a lost machine for a while."""
PREPARED_ONLY_VARIABLE = "DSV3_PREPARED_ONLY"
"""Set: the text was prepared beforehand; many ranks must not each prepare it on their machines."""
STACK_SIGNAL = signal.SIGUSR2
"""Asks a rank to write the Python stack of every thread."""


@dataclass(frozen=True)
class Place:
    """Which of how many ranks a process is; a process that nobody placed is the only one."""

    rank: int
    world_size: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Place":
        """Read RANK and WORLD_SIZE, as every launcher sets them."""
        return cls(int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1")))

    @property
    def alone(self) -> bool:
        """Whether there is no other rank."""
        return self.world_size == 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that holds the lock, writes the files and has the terminal."""
        return self.rank == 0


def log_name(rank: int) -> str:
    """Name of a rank's log in logs/."""
    return f"rank-{rank}.log"


def stack_name(rank: int) -> str:
    """Name of the file in logs/ that a rank writes its stacks into when it is asked."""
    return f"rank-{rank}.stack"


@dataclass(frozen=True)
class RankArguments:
    """`RUN_DIR --config FILE [--quiet]`; FILE is a name inside the run directory."""

    run_dir: Path
    config_file: str
    quiet: bool

    def to_argv(self) -> list[str]:
        """The arguments after `python -m dsv3.train.worker`."""
        argv = [str(self.run_dir), "--config", self.config_file]
        return [*argv, "--quiet"] if self.quiet else argv

    @classmethod
    def from_argv(cls, argv: Sequence[str]) -> "RankArguments":
        """Parse `argv`, without the program's name; without `--config`: the frozen config.yaml."""
        parser = argparse.ArgumentParser(prog=RANK_MODULE, description="One rank of a dsv3 run.")
        parser.add_argument("run_dir", type=Path)
        parser.add_argument("--config", dest="config_file", default="config.yaml")
        parser.add_argument("--quiet", action="store_true")
        parsed = parser.parse_args(argv)
        return cls(parsed.run_dir, parsed.config_file, parsed.quiet)


@dataclass(frozen=True)
class EvaluationArguments:
    """`RUN_DIR --config FILE --report FILE [--step N] [--ema] [--quiet]`.

    Without a step: the newest good checkpoint; with `--ema`: the average of its parameters. The
    process says in the report, a JSON file, where it wrote the evaluation, or how it failed.
    """

    run_dir: Path
    config_file: str
    report: Path
    step: int | None
    quiet: bool
    ema: bool = False

    def to_argv(self) -> list[str]:
        """The arguments after `python -m dsv3.train.evaluator`."""
        argv = [str(self.run_dir), "--config", self.config_file, "--report", str(self.report)]
        if self.step is not None:
            argv += ["--step", str(self.step)]
        if self.ema:
            argv.append("--ema")
        return [*argv, "--quiet"] if self.quiet else argv

    @classmethod
    def from_argv(cls, argv: Sequence[str]) -> "EvaluationArguments":
        """Parse `argv`, without the program's name."""
        parser = argparse.ArgumentParser(
            prog=EVALUATION_MODULE, description="An evaluation of a dsv3 run."
        )
        parser.add_argument("run_dir", type=Path)
        parser.add_argument("--config", dest="config_file", required=True)
        parser.add_argument("--report", type=Path, required=True)
        parser.add_argument("--step", type=int)
        parser.add_argument("--ema", action="store_true")
        parser.add_argument("--quiet", action="store_true")
        return cls(**vars(parser.parse_args(argv)))
