"""How far runs are, as rows and sentences."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

from dsv3.sweep.progress import Progress

COLUMNS = ("arm", "seed", "status", "step", "loss", "validation loss", "tokens/s", "left")
NUMBERS_FROM = 3


def row(progress: Progress) -> tuple[str, ...]:
    """The cells of a run, as in COLUMNS; what is not known yet is a dash."""
    seed = "-" if progress.seed < 0 else str(progress.seed)
    speed = progress.tokens_per_second
    return (
        progress.arm or progress.id,
        seed,
        progress.status,
        _steps(progress),
        _loss(progress.loss),
        _loss(progress.validation_loss),
        "-" if speed is None else f"{speed:,.0f}",
        _left(progress.seconds_left),
    )


def figures(progress: Progress) -> str:
    """One run in a line: `step 20/266  loss 3.1415  9,000 tokens/s  0:01:20 left`."""
    if progress.loss is None:
        return "starting"
    speed = progress.tokens_per_second
    parts = [f"step {_steps(progress)}", f"loss {progress.loss:.4f}"]
    if speed is not None:
        parts.append(f"{speed:,.0f} tokens/s")
    if progress.seconds_left is not None:
        parts.append(f"{_left(progress.seconds_left)} left")
    return "  ".join(parts)


def summary(every: Sequence[Progress]) -> str:
    """`3 of 10 done, 2 running, 1 failed`."""
    counts = Counter(progress.status for progress in every)
    done = counts.pop("done", 0)
    others = [f"{number} {status}" for status, number in sorted(counts.items())]
    return ", ".join([f"{done} of {len(every)} done", *others])


def _steps(progress: Progress) -> str:
    total = "?" if progress.total_steps is None else f"{progress.total_steps}"
    return f"{progress.step}/{total}"


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _left(seconds: float | None) -> str:
    return "-" if seconds is None else str(timedelta(seconds=round(seconds)))
