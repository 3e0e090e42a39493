"""What the plan makes of published runs, with the gap."""

from dataclasses import asdict

from dsv3.commands.console import write_json, write_table
from dsv3.config.compose import compose
from dsv3.config.hardware import load_hardware
from dsv3.plan.published import checks
from dsv3.plan.setting import DEFAULT_HARDWARE


def print_published(*, as_json: bool) -> int:
    """Print every check; returns 0: a gap is a finding, not a failure."""
    hardware = load_hardware(DEFAULT_HARDWARE)
    found = list(checks(lambda words: compose(words).config, hardware))
    if as_json:
        write_json({"checks": [asdict(check) | {"gap": check.gap} for check in found]})
        return 0
    rows = [
        (
            check.what,
            check.source,
            f"{check.published:,g} {check.unit}",
            f"{check.planned:,.5g} {check.unit}",
            f"{check.gap:+.1%}",
        )
        for check in found
    ]
    columns = ("figure", "source", "published", "planned", "gap")
    write_table(columns, rows, title="The plan against published runs", numbers_from=2)
    return 0
