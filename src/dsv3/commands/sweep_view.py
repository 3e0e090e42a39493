"""What a person sees of a running sweep: its runs one after the other, or a table of them."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dsv3.commands import console
from dsv3.commands.ending import say_failed_before
from dsv3.commands.progress_table import COLUMNS, figures, row, summary
from dsv3.errors import Dsv3Error
from dsv3.plan.description import describe
from dsv3.sweep.arms import BASE
from dsv3.sweep.progress import Gauge, Progress
from dsv3.sweep.runner import STOPPED, Job, Outcome, Watcher

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

REDRAW_EVERY_S = 0.5
LINE_EVERY_S = 10.0
_MOST_LINES = 5
_ROWS_AROUND = 6
"""Lines of a terminal that are not rows: title, header, rules."""


@contextlib.contextmanager
def view(sweep: str, jobs: Sequence[Job], *, side_by_side: bool, quiet: bool) -> Iterator[Watcher]:
    """The watcher for where stderr goes; runs that are trained one by one show themselves."""
    if quiet:
        yield Errors()
    elif not side_by_side:
        yield OneByOne()
    elif not sys.stderr.isatty() or os.environ.get("TERM", "") in {"", "dumb"}:
        yield Lines()
    else:
        table = Table(sweep, jobs)
        try:
            yield table
        finally:
            table.close()


class Errors:
    """Shows what went wrong, and nothing else; for `--json`."""

    refresh_s: float | None = None

    def starts(self, job: Job) -> None:
        """Do nothing."""

    def waits(self, jobs: Sequence[Job]) -> None:
        """Do nothing."""

    def failed_before(self, job: Job) -> None:
        """Do nothing: its failure is in the result."""

    def cannot(self, job: Job, error: Dsv3Error) -> None:
        """Show the error."""
        for line in error.lines():
            self._show(f"{label(job)}: {line}")

    def ended(self, outcome: Outcome, said: Path | None, begin: int) -> None:
        """Show what the run said of its failure."""
        if outcome.exit_code != 0 and said is not None:
            for line in _errors(said, begin):
                self._show(f"{label(outcome.job)}: {line}")

    def look(self, running: Sequence[Job]) -> None:
        """Do nothing."""

    def stopping(self, number: int, running: Sequence[Job]) -> None:
        """Do nothing."""

    def _show(self, text: str) -> None:
        console.note(text)


class OneByOne(Errors):
    """A line before each run, which then has the terminal."""

    def __init__(self) -> None:
        self._waiting: set[Path] = set()

    def starts(self, job: Job) -> None:
        """Say which run of how many comes now."""
        self._show(f"{label(job)}: {describe(job.config)}")
        self._show(f"run directory: {job.directory.path}")

    def waits(self, jobs: Sequence[Job]) -> None:
        """Say once whom this process waits for."""
        for job in jobs:
            if job.directory.path not in self._waiting:
                self._waiting.add(job.directory.path)
                self._show(f"waiting for another process that trains {job.directory.path}")

    def failed_before(self, job: Job) -> None:
        """Say how it failed."""
        say_failed_before(job.directory, quiet=False)


class Lines(OneByOne):
    """For runs side by side, without a terminal: a line for each now and then."""

    refresh_s: float | None = LINE_EVERY_S

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said_at_s = clock()

    def ended(self, outcome: Outcome, said: Path | None, begin: int) -> None:
        """Say how a run ended."""
        super().ended(outcome, said, begin)
        self._show(f"{label(outcome.job)}: {_ending(outcome)}")

    def look(self, running: Sequence[Job]) -> None:
        """Say how far each run is, if it is time to."""
        now_s = self._clock()
        if now_s - self._said_at_s < LINE_EVERY_S:
            return
        self._said_at_s = now_s
        for job in running:
            self._show(f"{label(job)}: {figures(_gauge(job).read())}")

    def stopping(self, number: int, running: Sequence[Job]) -> None:
        """Say what is waited for."""
        if running:
            self._show(f"asked to stop: {len(running)} runs save and end")


class Table(Lines):
    """For runs side by side, on a terminal: one table of all runs, drawn anew twice a second."""

    refresh_s: float | None = REDRAW_EVERY_S

    def __init__(self, sweep: str, jobs: Sequence[Job]) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__()
        self._sweep = sweep
        self._gauges = {job.number: _gauge(job) for job in jobs}
        self._last = {number: gauge.read() for number, gauge in self._gauges.items()}
        self._live: Live = Live(
            console=Console(stderr=True, highlight=False), auto_refresh=False, transient=True
        )
        _survive_closed(self._live.start)

    def starts(self, job: Job) -> None:
        """Nothing to say: its row says it."""

    def ended(self, outcome: Outcome, said: Path | None, begin: int) -> None:
        """Leave a line above the table."""
        super().ended(outcome, said, begin)
        number = outcome.job.number
        self._last[number] = self._gauges[number].read()

    def look(self, running: Sequence[Job]) -> None:
        """Draw the table; only rows that can have changed are read."""
        now = {job.number for job in running}
        for number, gauge in self._gauges.items():
            if number in now or self._last[number].status == "running":
                self._last[number] = gauge.read()
        _survive_closed(lambda: self._live.update(self._drawn(), refresh=True))

    def close(self) -> None:
        """Take the table away and show the cursor again."""
        _survive_closed(self._live.stop)

    def _drawn(self) -> "RenderableType":
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable
        from rich.text import Text

        every = list(self._last.values())
        table = RichTable(title=Text(f"{self._sweep}: {summary(every)}"), box=SIMPLE_HEAD)
        for number, column in enumerate(COLUMNS):
            table.add_column(Text(column), justify="left" if number in (0, 2) else "right")
        for progress in _fitting(every, self._live.console.height - _ROWS_AROUND):
            table.add_row(*(Text(console.printable(cell)) for cell in row(progress)))
        return table

    def _show(self, text: str) -> None:
        shown = console.printable(text)
        _survive_closed(lambda: self._live.console.print(shown, markup=False))


def label(job: Job) -> str:
    """`[3/10] aux_free seed 2`."""
    name = "" if job.arm.name == BASE else f"{job.arm.name} "
    return f"[{job.number}/{job.total}] {name}seed {job.config.seed}"


def _gauge(job: Job) -> Gauge:
    return Gauge(job.directory, arm=job.arm.name, seed=job.config.seed)


def _fitting(every: Sequence[Progress], most: int) -> Sequence[Progress]:
    """All rows, or those of the runs that are training where a terminal is too low for all."""
    if len(every) <= most:
        return every
    return [progress for progress in every if progress.status == "running"][: max(1, most)]


def _ending(outcome: Outcome) -> str:
    if outcome.exit_code == 0:
        result = outcome.job.directory.result()
        return "done" if result is None else f"done, validation loss {result['loss']:.4f}"
    if outcome.exit_code in STOPPED:
        return "stopped, and saved"
    return f"failed, exit code {outcome.exit_code}"


def _errors(said: Path, begin: int) -> list[str]:
    """The errors in what a run printed, or its last words."""
    try:
        with said.open("rb") as file:
            file.seek(begin)
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    errors = [line for line in lines if line.startswith("error[")]
    return (errors or lines)[-_MOST_LINES:]


def _survive_closed(show: Callable[[], object]) -> None:
    """Show something; to nobody if the terminal has gone: the sweep goes on."""
    with contextlib.suppress(OSError, ValueError):
        show()
