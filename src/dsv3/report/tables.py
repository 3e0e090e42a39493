"""The tables of a report."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from dsv3.config.diff import differences
from dsv3.config.root import RunConfig
from dsv3.plan.quantities import plural
from dsv3.report.blocks import Table
from dsv3.report.comparable import column_for, not_comparable_because, scale_for
from dsv3.report.metrics import METRICS
from dsv3.report.paper import Reference, Row, Scale
from dsv3.report.study import Study, StudyRun
from dsv3.report.verdicts import Judgement, MetricFindings
from dsv3.report.wording import (
    NOTHING,
    PLUS_MINUS,
    difference,
    interval,
    label,
    listed,
    mean_and_spread,
    number,
)

MOST_COLUMNS, WIDE = 6, 150
"""Arms that still are columns, more of them are rows; and the columns of text that takes."""
OF_A_RUN = ("seed", "run_root")
"""Keys in which arms do not differ as arms."""


def verdicts(judgement: Judgement) -> Table:
    """One row for each arm but the baseline."""
    findings = judgement.deciding
    digits, bounded = findings.info.digits, judgement.rule.bound is not None
    rows = []
    for arm, comparison in findings.comparisons.items():
        mean = findings.of_arm(arm).summary.mean if bounded else comparison.mean
        rows.append(
            (
                arm,
                comparison.verdict or NOTHING,
                number(mean, digits, signed=not bounded),
                interval(comparison.interval, digits, signed=not bounded),
                number(comparison.detectable, digits),
                str(len(comparison.differences)),
            )
        )
    what = "mean" if bounded else "difference"
    columns = ("arm", "verdict", what, "interval", "smallest detectable", "pairs")
    caption = f"{label(findings.info)}, compared with {judgement.baseline}"
    return Table("verdicts", caption, columns, tuple(rows), numbers_from=2)


def results(judgement: Judgement) -> Table:
    """Every figure of every arm, in the layout of tables 4 and 5 while that has room."""
    arms = [figures.arm for figures in judgement.deciding.arms]
    every = [
        findings
        for findings in (judgement.deciding, *judgement.others)
        if len(arms) > 1 or findings.info.name != "relative_loss_error"  # to oneself it is 0
    ]
    cells = {
        (arm, findings.info.name): mean_and_spread(findings.of_arm(arm), findings.info.digits)
        for findings in every
        for arm in arms
    }
    cells[judgement.baseline, "relative_loss_error"] = NOTHING
    seeds = max(len(figures.values) for figures in judgement.deciding.arms)
    caption = (
        f"Mean {PLUS_MINUS} standard deviation over {plural(seeds, 'seed')}, "
        "or over as many as the number behind it says"
    )
    if len(arms) <= MOST_COLUMNS:
        rows = [(label(f.info), *(cells[arm, f.info.name] for arm in arms)) for f in every]
        return Table("results", caption, ("figure", *arms), tuple(rows))
    rows = [(arm, *(cells[arm, f.info.name] for f in every)) for arm in arms]
    return Table("results", caption, ("arm", *(label(f.info) for f in every)), tuple(rows))


def all_differences(judgement: Judgement) -> Table:
    """The same for differences to the baseline."""
    every = (judgement.deciding, *judgement.others)
    rows = [
        (arm, label(f.info), difference(f.comparisons[arm], f.info.digits))
        for arm in judgement.deciding.comparisons
        for f in every
        if f.comparisons[arm].mean is not None and f.info.name != "relative_loss_error"
    ]
    caption = f"Arm - {judgement.baseline}, mean over pairs [interval]"
    return Table("differences", caption, ("arm", "figure", "difference"), tuple(rows), 2)


def beside_the_paper(study: Study, judgement: Judgement, reference: Reference) -> Table | None:
    """Ours and the published numbers, and why they do not compare; None without a run of ours."""
    configs = arm_configs(study)
    if not configs:
        return None
    config = next(iter(configs.values()))
    scale = scale_for(reference, config)
    matched = {arm: column_for(reference, of) for arm, of in configs.items()}
    ours = [arm for arm, column in matched.items() if column is not None]
    rows = [
        (
            row.label,
            *(_mean(judgement, row, arm) for arm in ours),
            *(number(value, row.digits) for value in row.values),
            "; ".join(not_comparable_because(reference, scale, row, config)),
        )
        for row in scale.rows
    ]
    columns = (
        "benchmark",
        *(f"ours: {arm}" for arm in ours),
        *(f"published: {column.label}" for column in reference.columns),
        "not comparable because",
    )
    caption = _about(scale, reference, study)
    return Table("paper", caption, columns, tuple(rows), 1, len(columns) - 1)


def _about(scale: Scale, reference: Reference, study: Study) -> str:
    return f"{study.record.model} here; published: {scale.name}, {reference.source}"


def _mean(judgement: Judgement, row: Row, arm: str) -> str:
    findings = finding(judgement, row.metric)
    if findings is None:
        return NOTHING
    return mean_and_spread(findings.of_arm(arm), max(row.digits, findings.info.digits))


def finding(judgement: Judgement, metric: str | None) -> MetricFindings | None:
    """What was found of a figure; None if no run has it."""
    every = (judgement.deciding, *judgement.others)
    return next((findings for findings in every if findings.info.name == metric), None)


def cost(study: Study) -> Table:
    """Speed and hours of every arm, and of all."""
    rows = [_cost_row(arm, study.of_arm(arm)) for arm in study.record.arms]
    kind = listed(run.device_kind for run in study.runs)
    columns = (
        "arm",
        "runs done",
        "tokens/s of a run",
        f"{kind} hours" if kind != NOTHING else "hours",
    )
    total = ("all", *_cost_row("", study.runs)[1:2], "", _cost_row("", study.runs)[3])
    caption = "Median speed of a run, mean over runs; time of the steps that count, on all devices"
    return Table("cost", caption, columns, (*rows, total))


def _cost_row(arm: str, runs: Sequence[StudyRun]) -> tuple[str, ...]:
    read = METRICS["tokens_per_second"].read
    speeds = [speed for run in runs if (speed := read(run, None)) is not None]
    spent = [run.cost_s * run.devices / 3600 for run in runs if run.cost_s is not None]
    done = sum(run.done for run in runs)
    return (
        arm,
        f"{done} of {len(runs)}",
        number(sum(speeds) / len(speeds), 0) if speeds else NOTHING,
        number(sum(spent), 3) if spent else NOTHING,
    )


def missing(judgement: Judgement) -> Table:
    """Runs without a result."""
    rows = tuple((c.arm, str(c.seed), c.status, c.why or NOTHING, c.id) for c in judgement.missing)
    columns = ("arm", "seed", "state", "why", "run")
    return Table("missing", "Runs without a result", columns, rows, numbers_from=len(columns))


def configuration(study: Study) -> Table:
    """Where the configuration of each arm is not the baseline's, key by key."""
    configs = arm_configs(study)
    reference = configs.get(study.record.baseline)
    rows = []
    for arm, config in configs.items():
        if reference is None or arm == study.record.baseline:
            continue
        both = [_data(reference), _data(config)]
        for key, (theirs, ours) in differences(both).items():
            rows.append((arm, key, _value(theirs), _value(ours)))
    columns = ("arm", "key", f"in {study.record.baseline}", "in the arm")
    caption = "Every key whose value is not the baseline's, seeds aside"
    return Table("configuration", caption, columns, tuple(rows), numbers_from=len(columns))


def arm_configs(study: Study) -> dict[str, RunConfig]:
    """A configuration of each arm that has one."""
    found: dict[str, RunConfig] = {}
    for arm in study.record.arms:
        for run in study.of_arm(arm):
            if run.config is not None:
                found.setdefault(arm, run.config)
    return found


def _data(config: RunConfig) -> dict[str, Any]:
    data = config.model_dump(mode="json")
    return {key: value for key, value in data.items() if key not in OF_A_RUN}


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def provenance(study: Study) -> Table:
    """Where the runs come from; a value that is not the same in all of them is listed."""
    every = [record for run in study.runs for record in run.attempts or (run.provenance,) if record]

    def of(*keys: str) -> str:
        return listed(_deep(record, keys) for record in every)

    rows = (
        ("dsv3", of("versions", "dsv3")),
        ("commit", listed(_commit(record) for record in every)),
        ("numerics version", of("numerics_version")),
        ("torch", of("versions", "torch")),
        ("deepspeed", of("versions", "deepspeed")),
        ("python", of("python")),
        ("machine", of("machine", "host")),
        ("processor", of("machine", "processor")),
        (
            "GPUs",
            listed(gpu for record in every for gpu in _deep(record, ("machine", "gpus")) or ()),
        ),
        ("ranks", of("layout", "world_size")),
        ("threads per rank", of("threads_per_rank")),
        ("data fingerprint", of("data_fingerprint")),
        ("first start", min((str(r.get("collected_at", "")) for r in every), default=NOTHING)),
        (
            "last result",
            max(
                (str(r.result.get("finished_at", "")) for r in study.runs if r.result),
                default=NOTHING,
            ),
        ),
        ("asked for at", study.record.created_at),
        ("command", shlex.join(study.record.said)),
        ("sweep", study.record.id),
    )
    return Table("provenance", "Where the runs come from", ("", ""), rows, numbers_from=2)


def _commit(record: Mapping[str, Any]) -> str | None:
    commit = _deep(record, ("git", "commit"))
    if commit is None:
        return None
    return f"{commit} with changes" if _deep(record, ("git", "dirty")) else str(commit)


def _deep(record: Mapping[str, Any], keys: Sequence[str]) -> Any:
    value: Any = record
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def runs(study: Study, judgement: Judgement) -> Table:
    """Every run with the figure that decides."""
    findings = judgement.deciding
    rows = [
        (
            run.id,
            run.arm,
            str(run.seed),
            run.status,
            number(findings.of_arm(run.arm).values.get(run.seed), findings.info.digits),
        )
        for run in study.runs
    ]
    columns = ("run", "arm", "seed", "state", label(findings.info))
    return Table("runs", "Every run", columns, tuple(rows), numbers_from=4)
