"""Starts a rank or an evaluation on this machine, passes signals on to it and waits for it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dsv3
from dsv3.config.root import RunConfig
from dsv3.errors import CapacityError, Dsv3Error, Problem, RankLostError
from dsv3.machine import usable_cores
from dsv3.runs.directory import RunDirectory
from dsv3.runs.rank import (
    EVALUATION_MODULE,
    LAUNCHER_PID_VARIABLE,
    RANK_MODULE,
    EvaluationArguments,
    RankArguments,
)
from dsv3.runs.records import EventLog

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
# A single rank meets itself in memory; what an outer srun or torchrun left in the environment
# would make it wait for ranks that never come.
_DISTRIBUTED_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
# glibc: serve up to 1 GiB from the heap, never trim it, grow it by 64 MiB. A step on a CPU
# otherwise spends a fifth of its time on page faults of memory it has just given back.
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
# GNU OpenMP: how often a waiting thread looks before it sleeps. As fast as the default on idle
# cores; beside busy neighbours a step takes a few times as long instead of a hundred.
_OPENMP_SPINS = "20000"


def refuse_several_ranks(config: RunConfig) -> None:
    """Raise CapacityError for a layout of more than one rank, which cannot be started yet."""
    layout = config.parallelism
    if layout.world_size == 1:
        return
    raise CapacityError(
        Problem(
            f"parallelism: {layout.world_size} ranks"
            f" (pipeline_parallel_size={layout.pipeline_parallel_size}"
            f" x expert_parallel_size={layout.expert_parallel_size}"
            f" x expert_data_parallel_size={layout.expert_data_parallel_size})",
            f"dsv3 {dsv3.__version__} does not train on several ranks yet",
            "train a model that fits with parallelism=single; look at this one with"
            " `dsv3 plan` or `dsv3 train --dry-run`",
        )
    )


def threads_per_rank(config: RunConfig) -> int:
    """CPU threads of each rank: as configured, or the cores shared out over the local ranks."""
    if config.launcher.threads_per_rank is not None:
        return config.launcher.threads_per_rank
    return max(1, usable_cores() // config.parallelism.world_size)


def rank_environment(config: RunConfig, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of the only rank, made from the launcher's."""
    own = {
        name: value
        for name, value in environment.items()
        if name not in _DISTRIBUTED_VARIABLES and not name.startswith("TORCHELASTIC_")
    }
    threads = str(threads_per_rank(config))
    own |= {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "PYTHONFAULTHANDLER": "1",
        LAUNCHER_PID_VARIABLE: str(os.getpid()),
    }
    if config.launcher.keep_memory and config.launcher.device != "cuda":
        own = {**_KEEP_MEMORY, **own}
    if "OMP_WAIT_POLICY" not in own:
        own.setdefault("GOMP_SPINCOUNT", _OPENMP_SPINS)
    # The rank does not import from the current directory (-P); it may be where dsv3 itself is.
    package_root = Path(dsv3.__file__).resolve().parents[1]
    if package_root == Path.cwd():
        own["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(package_root), own.get("PYTHONPATH")])
        )
    return own


def launch(run_dir: Path, config: RunConfig, *, quiet: bool = False) -> int:
    """Run the rank of `run_dir` to its end and return its exit code.

    Call it from the main thread. The rank has this process' terminal. SIGTERM, SIGUSR1 and SIGHUP
    are passed on, SIGINT unless the terminal sends it to the rank by itself; then the rank is
    waited for, however long it saves.
    Raises CapacityError if it cannot be started, RankLostError if a signal killed it.
    """
    run = RunDirectory(run_dir)
    arguments = RankArguments(run_dir, run.config_file(config), quiet)
    code = _run(RANK_MODULE, arguments.to_argv(), config)
    if code < 0:
        name = signal.Signals(-code).name
        with contextlib.suppress(CapacityError), EventLog(run.events_path) as events:
            events.event("rank_lost", rank=0, signal=name)
        remedy = "ask for the same run again: it goes on from its last checkpoint"
        raise RankLostError(_lost(run, "rank 0", name, "rank-0.log", remedy))
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
    command = [sys.executable, "-P", "-m", module, *argv]
    with _signals_as_bytes() as signals:
        child = _start(command, rank_environment(config, os.environ))
        return _wait(child, signals)


def _start(command: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    # The rank inherits these signals blocked: one that comes while it still imports waits until
    # it is ready to save, and does not kill it.
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    try:
        return subprocess.Popen(command, env=environment)  # noqa: S603 - our own words, no shell
    except OSError as error:
        problem = Problem(command[0], f"cannot be started ({error})", "see `dsv3 doctor`")
        raise CapacityError(problem) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _wait(child: "subprocess.Popen[bytes]", signals: socket.socket) -> int:
    while (code := child.poll()) is None:
        for number in signals.recv(64):
            if number != signal.SIGCHLD and not _sent_by_terminal(number):
                child.send_signal(number)
    return code


@contextlib.contextmanager
def _signals_as_bytes() -> Iterator[socket.socket]:
    """A socket on which the number of each signal arrives, whichever thread the kernel chose.

    Libraries (tokenizers, BLAS) leave threads behind that may be given a signal; a handler alone
    would then not wake the main thread.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    caught = [*_FORWARDED, signal.SIGCHLD]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup, and to stay so
        caught.remove(signal.SIGHUP)
    previous: dict[signal.Signals, Any] = {
        number: signal.signal(number, lambda _number, _frame: None) for number in caught
    }
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in previous.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()


def _sent_by_terminal(number: int) -> bool:
    """Whether the rank, in our process group, has this SIGINT already: we are in the foreground."""
    if number != signal.SIGINT:
        return False
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _lost(run: RunDirectory, who: str, signal_name: str, log: str, remedy: str) -> Problem:
    memory = (
        " (if nobody did that, the kernel ran out of memory: lower schedule.micro_batch_size)"
        if signal_name == "SIGKILL"
        else ""
    )
    rule = f"{who} was killed by {signal_name}{memory}; its log: {run.logs / log}"
    return Problem(str(run.path), rule, remedy)
