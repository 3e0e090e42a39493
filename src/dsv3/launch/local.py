"""Starts ranks or an evaluation on this machine, passes signals on to them and waits for them."""

import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

from dsv3.config.root import RunConfig
from dsv3.errors import CapacityError, Dsv3Error, Problem, RankLostError
from dsv3.launch.environment import rank_environment, threads_per_rank
from dsv3.launch.group import run_group
from dsv3.launch.launcher import Launcher
from dsv3.launch.process import Process, start
from dsv3.launch.signals import sent_by_terminal, signals_as_bytes, stops_so_far
from dsv3.launch.verdict import GO_ON, conclude, killed_by
from dsv3.machine import this_machine
from dsv3.plan.capacity import check_capacity, device_kind
from dsv3.plan.quantities import plural
from dsv3.runs.directory import RunDirectory
from dsv3.runs.rank import EVALUATION_MODULE, RANK_MODULE, EvaluationArguments, RankArguments
from dsv3.runs.records import EventLog

# Ranks on a CPU are for trying layouts out; each holds an interpreter with torch and its threads.
_RANKS_PER_CORE = 8


class LocalLauncher(Launcher):
    """This machine."""

    def refuse(self, config: RunConfig) -> None:
        """Raise CapacityError if there are too few GPUs, cores, or too little memory."""
        check_capacity(config, this_machine())
        refuse_several_ranks(config)

    def threads_per_rank(self, config: RunConfig) -> int:
        """As configured, or the cores shared out over the ranks."""
        return threads_per_rank(config)


def refuse_several_ranks(config: RunConfig) -> None:
    """Raise CapacityError for more ranks than can be started here.

    Whether there is a GPU for each and memory for all, `plan.capacity` has checked.
    """
    layout = config.parallelism
    if layout.world_size == 1:
        return
    setting = (
        f"parallelism: {layout.world_size} ranks"
        f" (pipeline_parallel_size={layout.pipeline_parallel_size}"
        f" x expert_parallel_size={layout.expert_parallel_size}"
        f" x expert_data_parallel_size={layout.expert_data_parallel_size})"
    )
    machine = this_machine()
    most = _RANKS_PER_CORE * machine.cores
    if device_kind(config, machine) == "cpu" and layout.world_size > most:
        rule = f"{plural(machine.cores, 'core')} run {most} ranks at most"
        look = "look at this one with `dsv3 plan` or `dsv3 train --dry-run`"
        raise CapacityError(Problem(setting, rule, f"choose a smaller layout; {look}"))


def launch(run_dir: Path, config: RunConfig, *, quiet: bool = False) -> int:
    """Run the ranks of `run_dir` to their end and return the exit code of the run.

    Call it from the main thread: the kernel ends the ranks with the thread that started them. The
    first rank has this process' terminal. SIGTERM, SIGUSR1 and SIGHUP are passed on, SIGINT unless
    the terminal sends it to the ranks by itself; then the ranks are waited for, however long they
    save. Of several, the one that failed first is named on stderr and decides the exit code.
    Raises CapacityError if they cannot be started, RankLostError if one died or fell silent.
    """
    run = RunDirectory(run_dir)
    arguments = RankArguments(run_dir, run.config_file(config), quiet)
    if config.parallelism.world_size > 1:
        command = _command(RANK_MODULE, arguments.to_argv())
        return conclude(run, run_group(run, config, command, rank_environment(config, os.environ)))
    code = _run(RANK_MODULE, arguments.to_argv(), config)
    if code < 0:
        name = signal.Signals(-code).name
        with contextlib.suppress(CapacityError), EventLog(run.events_path) as events:
            events.event("rank_lost", rank=0, signal=name)
        raise RankLostError(_lost(run, "rank 0", name, "rank-0.log", GO_ON))
    if code == 1:
        raise Dsv3Error(f"rank 0 of {run.path} ended without a named error; see what it printed")
    return code


def launch_evaluation(arguments: EvaluationArguments, config: RunConfig) -> int:
    """Run an evaluation to its end, in the environment a rank has, and return its exit code.

    Signals and errors as in `launch`.
    """
    run = RunDirectory(arguments.run_dir)
    code = _run(EVALUATION_MODULE, arguments.to_argv(), config)
    if code < 0:
        name = signal.Signals(-code).name
        lost = _lost(run, "the evaluation", name, "evaluation.log", "evaluate again")
        raise RankLostError(lost)
    if code == 1:
        raise Dsv3Error(f"the evaluation of {run.path} ended without a named error")
    return code


def _run(module: str, argv: list[str], config: RunConfig) -> int:
    """Exit code of `python -m module argv`, negative if a signal killed it."""
    with signals_as_bytes() as signals:
        child = start(_command(module, argv), rank_environment(config, os.environ))
        for number in stops_so_far(signals):  # the terminal's, too: the child was not there yet
            child.send_signal(number)
        return _wait(child, signals)


def _command(module: str, argv: list[str]) -> list[str]:
    return [sys.executable, "-P", "-m", module, *argv]


def _wait(child: Process, signals: socket.socket) -> int:
    while (code := child.poll()) is None:
        for number in signals.recv(64):
            if number != signal.SIGCHLD and not sent_by_terminal(number):
                child.send_signal(number)
    return code


def _lost(run: RunDirectory, who: str, signal_name: str, log: str, remedy: str) -> Problem:
    rule = f"{who} was {killed_by(signal_name)}; its log: {run.logs / log}"
    return Problem(str(run.path), rule, remedy)
