"""The figures of a report for programs: JSON, and CSV by run and by arm. All three agree."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from dsv3.report.metrics import METRICS
from dsv3.report.study import Study
from dsv3.report.verdicts import Judgement, MetricFindings
from dsv3.sweep.statistics import Comparison

FORMAT = 1
RUN_COLUMNS = ("id", "arm", "seed", "status", "cost_s", "devices", "device_kind")
SUMMARY_COLUMNS = (
    "metric",
    "decides",
    "arm",
    "n",
    "mean",
    "sd",
    "pairs",
    "difference",
    "difference_sd",
    "interval_low",
    "interval_high",
    "detectable",
    "verdict",
)


def as_data(study: Study, judgement: Judgement) -> dict[str, Any]:
    """The whole report as plain data; what is not known is null."""
    record = study.record
    return {
        "format": FORMAT,
        "sweep": {
            "id": record.id,
            "name": record.name,
            "model": record.model,
            "created_at": record.created_at,
            "command": list(record.said),
            "baseline": record.baseline,
            "arms": list(record.arms),
        },
        "recipe": None if record.recipe is None else record.recipe.model_dump(mode="json"),
        "rule": judgement.rule.model_dump(mode="json"),
        "confidence_of_each": judgement.confidence_of_each,
        "noise": {
            "metric": judgement.deciding.info.name,
            **vars(judgement.deciding.noise),
        },
        "summary": summary(judgement),
        "runs": run_rows(study, judgement),
        "missing": [vars(cell) for cell in judgement.missing],
        "pair_differences": {arm: list(of) for arm, of in judgement.differences.items()},
    }


def summary(judgement: Judgement) -> list[dict[str, Any]]:
    """A row for each figure and arm."""
    return [
        _summary_row(findings, figures.arm, decides=findings is judgement.deciding)
        for findings in (judgement.deciding, *judgement.others)
        for figures in findings.arms
    ]


def run_rows(study: Study, judgement: Judgement) -> list[dict[str, Any]]:
    """A row for each run, with every figure it has."""
    found = {f.info.name: f for f in (judgement.deciding, *judgement.others)}
    rows = []
    for run in study.runs:
        row: dict[str, Any] = {column: getattr(run, column) for column in RUN_COLUMNS}
        for name in METRICS:
            values = found[name].of_arm(run.arm).values if name in found else {}
            row[name] = values.get(run.seed)
        rows.append(row)
    return rows


def as_csv(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as CSV: figures with all their digits, nothing where there is none.

    Text that a spreadsheet would take for a formula gets a blank in front.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, tuple(columns), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return buffer.getvalue()


def as_json(data: Mapping[str, Any]) -> str:
    """Data as JSON with a line end."""
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return f" {value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    return repr(value) if isinstance(value, float) else value


def _summary_row(findings: MetricFindings, arm: str, *, decides: bool) -> dict[str, Any]:
    of_arm = findings.of_arm(arm).summary
    row: dict[str, Any] = dict.fromkeys(SUMMARY_COLUMNS)
    row |= {
        "metric": findings.info.name,
        "decides": decides,
        "arm": arm,
        "n": of_arm.n,
        "mean": of_arm.mean,
        "sd": of_arm.sd,
    }
    comparison = findings.comparisons.get(arm)
    return row if comparison is None else row | _compared(comparison)


def _compared(comparison: Comparison) -> dict[str, Any]:
    low, high = comparison.interval if comparison.interval is not None else (None, None)
    return {
        "pairs": len(comparison.differences),
        "difference": comparison.mean,
        "difference_sd": comparison.sd,
        "interval_low": low,
        "interval_high": high,
        "detectable": comparison.detectable,
        "verdict": comparison.verdict,
    }
