"""`python -m bench [--quick] [--json]`: start-up, load metrics, mechanisms, the peer."""

import argparse
import json
import sys

from rich.console import Console
from rich.table import Table

from bench import load, mechanisms, startup, throughput


def main() -> None:
    """Measure, and print tables or JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, nothing compiled")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    options = parser.parse_args()
    starts = startup.measure(rounds=3 if options.quick else 9)
    if not options.json:
        _print_starts(starts)
    loads = []
    for cost in load.measure(quick=options.quick):
        loads.append(cost)
        if not options.json:
            load.show(cost)
    costs = []
    for cost in mechanisms.measure(quick=options.quick):
        costs.append(cost)
        if not options.json:
            mechanisms.show(cost)
    speeds = []
    for speed in throughput.measure(quick=options.quick):
        speeds.append(speed)
        if not options.json:
            throughput.show(speed)
    if options.json:
        found = {"startup": starts, "load": loads, "mechanisms": costs, "throughput": speeds}
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
