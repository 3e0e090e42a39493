"""What a rank, or an evaluation, is told on its command line; written by launchers, read by it."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RANK_MODULE = "dsv3.train.worker"
EVALUATION_MODULE = "dsv3.train.evaluator"
LAUNCHER_PID_VARIABLE = "DSV3_LAUNCHER_PID"


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
    """`RUN_DIR --config FILE --report FILE [--step N] [--quiet]`.

    Without a step: the newest good checkpoint. The process says in the report, a JSON file, where
    it wrote the evaluation, or how it failed.
    """

    run_dir: Path
    config_file: str
    report: Path
    step: int | None
    quiet: bool

    def to_argv(self) -> list[str]:
        """The arguments after `python -m dsv3.train.evaluator`."""
        argv = [str(self.run_dir), "--config", self.config_file, "--report", str(self.report)]
        if self.step is not None:
            argv += ["--step", str(self.step)]
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
        parser.add_argument("--quiet", action="store_true")
        parsed = parser.parse_args(argv)
        return cls(parsed.run_dir, parsed.config_file, parsed.report, parsed.step, parsed.quiet)
