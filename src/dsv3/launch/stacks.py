"""Asks ranks where they are: the stacks their C library writes, also while they are blocked."""

import contextlib
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from dsv3.runs.rank import STACK_SIGNAL, stack_name

_GONE = "gone"
_ANSWER_S = 2.0
_POLL_S = 0.05
_SHOWN = 5
_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)')
# Who waits for the other ranks is in one of these.
_COMMUNICATION = ("/torch/distributed/", "/deepspeed/", "/dsv3/parallel/", "/dsv3/engine/")
_HALTED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
_UNABLE = (*_HALTED, psutil.STATUS_ZOMBIE, _GONE)


@dataclass(frozen=True)
class Frame:
    """One call of a Python stack."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.function} ({Path(self.file).name}:{self.line})"


@dataclass(frozen=True)
class Whereabouts:
    """State of a process, and the stack of its main thread, innermost call first, if it answers."""

    state: str
    frames: tuple[Frame, ...]
    file: Path

    @property
    def halted(self) -> bool:
        """Whether a signal (SIGSTOP) or a debugger keeps it from running."""
        return self.state in _HALTED

    @property
    def waits_for_ranks(self) -> bool:
        """Whether it is in a call that ends when the other ranks make it, too."""
        return bool(self.frames) and any(part in self.frames[0].file for part in _COMMUNICATION)

    def __str__(self) -> str:
        if self.frames:
            shown = " < ".join(map(str, self.frames[:_SHOWN]))
            return f"{shown}{' < ...' if len(self.frames) > _SHOWN else ''}; stacks: {self.file}"
        if self.halted:
            return "halted by a signal (SIGSTOP) or a debugger, so it cannot show its stack"
        return f"no stack, the process is {self.state}"


def forget_stacks(logs: Path, ranks: Iterable[int]) -> None:
    """Remove the answers to earlier launches."""
    for rank in ranks:
        with contextlib.suppress(OSError):
            (logs / stack_name(rank)).unlink()


def ask(pids: Mapping[int, int], logs: Path) -> dict[int, Whereabouts]:
    """Where each of the ranks is; `pids` by rank, of processes that are not reaped yet.

    Waits for the answers up to two seconds; one that is halted is not waited for.
    """
    files = {rank: logs / stack_name(rank) for rank in pids}
    before = {rank: _text(file) for rank, file in files.items()}
    for pid in pids.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, STACK_SIGNAL)
    deadline_s = time.monotonic() + _ANSWER_S
    answers: dict[int, str] = {}
    while time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
        texts = {rank: _text(file) for rank, file in files.items()}
        able = [rank for rank, pid in pids.items() if _state(pid) not in _UNABLE]
        # Written line by line: an answer is whole when it does not grow any more.
        if texts == answers and all(texts[rank] != before[rank] for rank in able):
            break
        answers = texts
    stacks = {rank: _main_stack(text, len(before[rank])) for rank, text in answers.items()}
    return {
        rank: Whereabouts(_state(pid), stacks.get(rank, ()), files[rank])
        for rank, pid in pids.items()
    }


def _main_stack(text: str, begin: int) -> tuple[Frame, ...]:
    """Frames of the main thread in what came after `begin`.

    The first line of the file names that thread, and the part of each thread begins with its name.
    """
    name = text.partition("\n")[0].removeprefix("main ")
    frames: list[Frame] = []
    inside = False
    for line in text[begin:].splitlines():
        match = _FRAME.fullmatch(line)
        if match is None:
            inside = name in line
        elif inside:
            frames.append(Frame(match["file"], int(match["line"]), match["function"]))
    return tuple(frames)


def _state(pid: int) -> str:
    try:
        return str(psutil.Process(pid).status())
    except psutil.Error:
        return _GONE


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
