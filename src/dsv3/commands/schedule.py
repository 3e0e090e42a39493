"""`dsv3 config schedule`: every curve of a configuration, as a table, a plot and a picture."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsv3.commands.console import note, write, write_json, write_table
from dsv3.config.compose import compose
from dsv3.config.root import RunConfig
from dsv3.files import storage_error, write_atomically
from dsv3.plan.quantities import count, plural
from dsv3.plan.scheduled import Scheduled, Stage, scheduled

POINTS = 400
"""Steps that a plot is drawn from, besides those where phases meet."""
WIDEST_PLOT = 120
TOKEN_DIGITS = 6
SMALLEST_PLAIN = 1e-3
"""Below it a power of ten reads better than zeros."""


def schedule(
    overrides: Sequence[str],
    *,
    svg: Path | None = None,
    config_dir: Path | None = None,
    as_json: bool = False,
) -> int:
    """Print the phases and plots of every curve, and draw them into `svg`; returns 0.

    Raises ConfigError if the configuration is wrong, CapacityError if `svg` cannot be written.
    """
    config = compose(overrides, config_dir=config_dir).config
    # What is zero throughout, as gamma without a bias, is no curve.
    curves = [curve for curve in scheduled(config) if curve.peak > 0]
    if svg is not None:
        _draw(svg, config, curves)
    if as_json:
        write_json(_record(config, curves))
        return 0
    rows = [row for curve in curves for row in _rows(curve)]
    columns = ("curve", "shape", "value", "tokens", "first step", "steps")
    write_table(columns, rows, title=title(config), numbers_from=2)
    for curve in curves:
        _plot(curve)
    return 0


def title(config: RunConfig) -> str:
    """What run the curves belong to."""
    s = config.schedule
    steps = plural(s.num_steps, "step")
    return f"{config.model.name}: {count(s.total_tokens)} tokens in {steps}"


def number(value: float) -> str:
    """A value of a curve: `15,360`, `0.1`, `2.2e-4`."""
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0 or value >= SMALLEST_PLAIN:
        return f"{value:.4g}"
    figures, _, power = f"{value:.3e}".partition("e")
    return f"{figures.rstrip('0').rstrip('.')}e{int(power)}"


def values(stage: Stage) -> str:
    """`2.2e-4`, or `2.2e-4 to 2.2e-5` where the stage moves."""
    begin, end = number(stage.value_at_begin), number(stage.value_at_end)
    return begin if begin == end else f"{begin} to {end}"


def _rows(curve: Scheduled) -> list[tuple[str, ...]]:
    return [
        (
            "" if place else curve.title,
            stage.shape,
            values(stage),
            f"{count(stage.begin, TOKEN_DIGITS)} to {count(stage.end, TOKEN_DIGITS)}",
            f"{stage.first_step:,}" if stage.steps else "none",
            f"{stage.steps:,}",
        )
        for place, stage in enumerate(curve.stages())
    ]


def _record(config: RunConfig, curves: Sequence[Scheduled]) -> dict[str, Any]:
    return {
        "model": config.model.name,
        "total_tokens": config.schedule.total_tokens,
        "reference_tokens": config.schedule.reference_tokens,
        "sequence_length": config.schedule.sequence_length,
        "steps": config.schedule.num_steps,
        "curves": [
            {
                "name": curve.name,
                "phases": [stage._asdict() for stage in curve.stages()],
                "points": [point._asdict() for point in curve.points(POINTS)],
            }
            for curve in curves
        ],
    }


def _plot(curve: Scheduled) -> None:
    """Draw a curve with characters, if stdout can show them."""
    if not (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf8"):
        return
    import plotext

    points, end = curve.points(POINTS), curve.schedule.total_tokens
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(min(shutil.get_terminal_size().columns, WIDEST_PLOT), 12)
    tokens = [point.tokens for point in points]
    plotext.plot(tokens, [point.value for point in points], marker="braille", color="cyan")
    plotext.ylim(0, None)
    ticks = [end * part // 4 for part in range(5)]
    plotext.xticks(ticks, [count(tick, 3) for tick in ticks])
    plotext.yticks(
        [0, curve.peak / 2, curve.peak], ["0", number(curve.peak / 2), number(curve.peak)]
    )
    plotext.title(f"{curve.title} over tokens")
    drawn = plotext.build()
    if not sys.stdout.isatty():
        drawn = plotext.uncolorize(drawn)
    write("\n".join(line.rstrip() for line in drawn.splitlines()))


def _draw(path: Path, config: RunConfig, curves: Sequence[Scheduled]) -> None:
    from dsv3.commands.schedule_picture import draw

    panels = [(curve, curve.stages(), curve.points(POINTS)) for curve in curves]
    image = draw(title(config), panels).encode()
    try:
        write_atomically(path, image)
    except OSError as error:
        raise storage_error(f"--svg {path}", error, "name a file that can be written") from error
    note(f"the curves are drawn in {path}")
