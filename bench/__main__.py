"""`python -m bench [--quick] [--json] [--only PART]`: times and bytes, part by part."""

import argparse
import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import (
    checkpoints,
    layouts,
    load,
    mechanisms,
    memory,
    plan,
    planned_memory,
    precisions,
    startup,
    throughput,
)

PARTS = {
    "plan": plan,
    "load": load,
    "mechanisms": mechanisms,
    "memory": memory,
    "planned_memory": planned_memory,
    "precisions": precisions,
    "layouts": layouts,
    "checkpoints": checkpoints,
    "throughput": throughput,
}


def main() -> None:
    """Measure, and print tables or JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, nothing compiled")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.add_argument("--only", choices=PARTS, help="one part, without start-up")
    options = parser.parse_args()
    found: dict[str, list[Any]] = {}
    if options.only is None:
        found["startup"] = startup.measure(rounds=3 if options.quick else 9)
        if not options.json:
            _print_starts(found["startup"])
    for name, part in PARTS.items():
        if options.only not in (None, name):
            continue
        found[name] = []
        for each in part.measure(quick=options.quick):
            found[name].append(each)
            if not options.json:
                part.show(each)
    if options.json:
        json.dump(found, sys.stdout, indent=2)


def _print_starts(starts: list[dict[str, object]]) -> None:
    table = Table(title="start-up: whole processes, medians", title_justify="left")
    for column in ("command", "s", "s beyond a bare interpreter"):
        table.add_column(column)
    for row in starts:
        seconds = (f"{row[key]:.3f}" for key in ("median_s", "beyond_bare_s"))
        table.add_row(str(row["command"]), *seconds)
    Console().print(table)


if __name__ == "__main__":
    main()
