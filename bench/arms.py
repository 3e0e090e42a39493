"""`python -m bench.arms RUN_ROOT [--baseline OVERRIDE]`: finished runs of one directory as a table.

Rows are arms, the overrides that the runs do not share, seeds aside; figures are mean and standard
deviation over seeds. Differences to the baseline are taken seed by seed: those share data and
initial weights. Markdown, as docs/results/ has it.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import yaml

LAST_STEPS = 50
"""Steps at the end of training over which batch figures are averaged."""

Figures = dict[str, float]
Arms = Mapping[str, Mapping[int, Figures]]
"""Arm -> seed -> figures."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.arms", description=__doc__)
    parser.add_argument("run_root", type=Path)
    parser.add_argument("--baseline", default="balance=none", help="the arm to compare with")
    options = parser.parse_args()
    for line in table(read(options.run_root), options.baseline):
        print(line)


def read(run_root: Path) -> Arms:
    """The figures of every finished run below `run_root`, by arm and seed."""
    done = [path.parent for path in sorted(run_root.glob("*/DONE"))]
    said = {run: yaml.safe_load((run / "overrides.yaml").read_text()) for run in done}
    shared = set.intersection(*(set(words) for words in said.values()))
    arms: dict[str, dict[int, Figures]] = defaultdict(dict)
    for run, words in said.items():
        seed = yaml.safe_load((run / "config.yaml").read_text())["seed"]
        own = [word for word in words if word not in shared and not word.startswith("seed=")]
        arms[" ".join(own)][seed] = _figures(run)
    return arms


def table(arms: Arms, baseline: str) -> list[str]:
    """Lines of Markdown, the baseline first."""
    columns: dict[str, Callable[[Figures], float | None]] = {
        "loss": lambda f: f["loss"],
        "bits per byte": lambda f: f["bpb"],
        "MaxVio global": lambda f: f["max_violation_global"],
        f"MaxVio batch, last {LAST_STEPS} steps": lambda f: f["max_violation"],
        "MaxVio sequence": lambda f: f["max_violation_sequence"],
        "MTP acceptance": lambda f: f.get("mtp_acceptance"),
        "tokens/s": lambda f: f["tokens_per_second"],
    }
    columns = {
        title: pick
        for title, pick in columns.items()
        if any(pick(figures) is not None for seeds in arms.values() for figures in seeds.values())
    }
    heads = ["arm", "seeds", *columns, f"loss - loss of {baseline}"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for arm in sorted(arms, key=lambda name: (name != baseline, name)):
        seeds = arms[arm]
        cells = [
            spread([value for f in seeds.values() if (value := pick(f)) is not None])
            for pick in columns.values()
        ]
        pairs = [f["loss"] - arms[baseline][s]["loss"] for s, f in seeds.items()]
        cells.append("" if arm == baseline else spread(pairs, signed=True))
        lines.append(f"| `{arm}` | {len(seeds)} | {' | '.join(cells)} |")
    return lines


def spread(values: list[float], *, signed: bool = False) -> str:
    """Mean and standard deviation, in as many digits as the size of the mean asks for."""
    if not values:
        return ""
    digits = 0 if abs(mean(values)) > 100 else 3 if signed or mean(values) < 10 else 2
    sign = "+" if signed else ""
    around = f" \N{PLUS-MINUS SIGN} {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.{digits}f}{around}"


def _figures(run: Path) -> Figures:
    result: dict[str, Any] = json.loads((run / "DONE").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line.get("kind") != "eval"]
    keys = ("loss", "bpb", "max_violation_global", "max_violation_sequence")
    figures = {key: result[key] for key in keys}
    figures["max_violation"] = mean(step["max_violation"] for step in steps[-LAST_STEPS:])
    figures["tokens_per_second"] = median(step["tokens_per_second"] for step in steps)
    if result.get("mtp_acceptance"):
        figures["mtp_acceptance"] = result["mtp_acceptance"][0]
    return figures


if __name__ == "__main__":
    main()
