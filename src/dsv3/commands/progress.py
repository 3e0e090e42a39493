"""How the preparation of text is shown: bars on a terminal, plain lines elsewhere; on stderr."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

LINE_EVERY_S = 10.0


@contextlib.contextmanager
def preparation_progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """Give the callback (stage, done, total) of `prepare`; nothing is shown until it is called."""
    if not sys.stderr.isatty() or os.environ.get("TERM", "") in {"", "dumb"}:
        yield PlainProgress()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskID,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:>16}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                for task in tasks.values():  # the stages follow each other
                    bars.update(task, total=1, completed=1)
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield show
        for task in tasks.values():
            bars.update(task, total=1, completed=1)


class PlainProgress:
    """A line when a stage begins, and one every ten seconds while it lasts."""

    def __init__(self) -> None:
        self._stage = ""
        self._said_at = 0.0

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Say where the preparation is, if it is time to."""
        now = time.monotonic()
        if stage == self._stage and now - self._said_at < LINE_EVERY_S:
            return
        share = f" {done / total:.0%}" if total and stage == self._stage else ""
        self._stage, self._said_at = stage, now
        with contextlib.suppress(OSError):  # nobody reads stderr any more; the work goes on
            sys.stderr.write(f"data: {stage}{share}\n")
            sys.stderr.flush()
