"""What a person sees of a running rank: a bar on a terminal, a plain line now and then elsewhere.

It only shows: a terminal that goes away never ends a run.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LINE_EVERY_S = 5.0
_REDRAW_EVERY_S = 0.2


class Presenter(Protocol):
    """How the progress of a rank is shown."""

    def step(self, step: int, *, loss: float, tokens_per_second: float) -> None:
        """Show that `step` is done."""

    def note(self, text: str) -> None:
        """Show a line that stays."""

    def close(self) -> None:
        """Leave the terminal in order; a second call does nothing."""


class Quiet:
    """Shows nothing; for `--json` and for every rank but the first."""

    def step(self, step: int, *, loss: float, tokens_per_second: float) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Lines:
    """A plain line for the first step, the last one, and every few seconds between them."""

    def __init__(
        self,
        stream: TextIO,
        *,
        total_steps: int,
        done_steps: int,
        clock: Callable[[], float],
        unit: str,
    ) -> None:
        self._stream = stream
        self._unit = unit
        self._total_steps = total_steps
        self._first_step = done_steps + 1
        self._clock = clock
        self._shown_at_s = -_LINE_EVERY_S + clock()
        self._first_at_s = 0.0

    def step(self, step: int, *, loss: float, tokens_per_second: float) -> None:
        """Write the line of `step` if it is time for one."""
        now_s = self._clock()
        if step == self._first_step:
            self._first_at_s = now_s
        if now_s - self._shown_at_s < _LINE_EVERY_S and step != self._total_steps:
            return
        self._shown_at_s = now_s
        self.note(
            f"{self._unit} {step}/{self._total_steps}  loss {loss:.4f}"
            f"  {tokens_per_second:,.0f} tokens/s{self._remaining(step, now_s)}"
        )

    def note(self, text: str) -> None:
        """Write `text` and a newline at once."""
        _survive_closed(lambda: print(text, file=self._stream, flush=True))

    def close(self) -> None:
        """Do nothing: every line is already out."""

    def _remaining(self, step: int, now_s: float) -> str:
        steps_timed = step - self._first_step
        if steps_timed < 1 or step >= self._total_steps:
            return ""
        remaining_s = (now_s - self._first_at_s) / steps_timed * (self._total_steps - step)
        return f"  {timedelta(seconds=round(remaining_s))} left"


class Bar:
    """A progress bar, redrawn by the steps themselves; no thread of its own."""

    def __init__(
        self,
        stream: TextIO,
        *,
        total_steps: int,
        done_steps: int,
        clock: Callable[[], float],
        unit: str,
    ) -> None:
        self._clock = clock
        self._total_steps = total_steps
        self._drawn_at_s = -_REDRAW_EVERY_S + clock()
        self._progress = Progress(
            TextColumn(unit),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[speed]} tokens/s"),
            TimeRemainingColumn(),
            console=Console(file=stream, force_terminal=True, highlight=False),
            auto_refresh=False,
            get_time=clock,
        )
        self._task = self._progress.add_task(
            "", total=total_steps, completed=done_steps, loss="-", speed="-"
        )
        _survive_closed(self._progress.start)

    def step(self, step: int, *, loss: float, tokens_per_second: float) -> None:
        """Move the bar; it is drawn a few times a second at most."""
        self._progress.update(
            self._task, completed=step, loss=f"{loss:.4f}", speed=f"{tokens_per_second:,.0f}"
        )
        now_s = self._clock()
        if now_s - self._drawn_at_s >= _REDRAW_EVERY_S or step == self._total_steps:
            self._drawn_at_s = now_s
            _survive_closed(self._progress.refresh)

    def note(self, text: str) -> None:
        """Write `text` above the bar."""
        _survive_closed(lambda: self._progress.console.print(text, markup=False))

    def close(self) -> None:
        """Leave the bar as it is and show the cursor again."""
        _survive_closed(self._progress.stop)


def open_console(
    *,
    total_steps: int,
    done_steps: int,
    quiet: bool = False,
    unit: str = "step",
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Presenter:
    """The presenter for where `stream` (stderr) goes; `done_steps` of a resumed run are behind.

    `unit` is what is counted: steps, or the batches of an evaluation.
    """
    stream = sys.stderr if stream is None else stream
    if quiet:
        return Quiet()
    is_terminal = stream.isatty() and os.environ.get("TERM", "") not in {"", "dumb"}
    kind = Bar if is_terminal else Lines
    return kind(stream, total_steps=total_steps, done_steps=done_steps, clock=clock, unit=unit)


def _survive_closed(show: Callable[[], object]) -> None:
    """Show something; if the reader has gone (`| head`, a closed terminal), show it to nobody."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: the stream object itself is closed
        show()
