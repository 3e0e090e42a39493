"""Figures and verdicts as people read them."""

from collections.abc import Iterable

from dsv3.picture import NO_BREAK
from dsv3.report.metrics import MetricInfo
from dsv3.report.verdicts import ArmFigures, Judgement
from dsv3.sweep.statistics import Comparison, Interval

NOTHING = "-"
PLUS_MINUS = "\u00b1"
MOST_LISTED = 4


def number(value: float | None, digits: int, *, signed: bool = False) -> str:
    """A figure with its digits behind the point; what is very small or large in powers of ten."""
    if value is None:
        return NOTHING
    sign = "+" if signed else ""
    text = f"{value:{sign},.{digits}f}"
    if value != 0 and float(text.replace(",", "")) == 0:
        return f"{value:{sign}.1e}"
    return text


def mean_and_spread(figures: ArmFigures, digits: int) -> str:
    """`0.724 +- 0.003`: mean and deviation over seeds, `(2)` of them if not all have the figure."""
    summary = figures.summary
    if summary.mean is None:
        return NOTHING
    spread = "" if summary.sd is None else f" {PLUS_MINUS} {summary.sd:,.{digits}f}"
    of = "" if summary.n == len(figures.values) else f" ({summary.n})"
    return f"{number(summary.mean, digits)}{spread}{of}"


def difference(comparison: Comparison, digits: int) -> str:
    """`+0.004 [-0.001, +0.009]`, or the mean alone where there is no interval."""
    mean = number(comparison.mean, digits, signed=True)
    return f"{mean} {interval(comparison.interval, digits)}" if comparison.interval else mean


def interval(ends: Interval | None, digits: int, *, signed: bool = True) -> str:
    """`[-0.001, +0.009]`."""
    if ends is None:
        return NOTHING
    low, high = (number(end, digits, signed=signed) for end in ends)
    return f"[{low}, {high}]"


def percent(share: float) -> str:
    """`95 %`, with the digits that tell it from 100 %."""
    digits = 0 if round(100 * share, 1) % 1 == 0 else 1
    return f"{100 * share:.{digits}f}{NO_BREAK}%"


def label(info: MetricInfo) -> str:
    """What a figure is called, with its unit."""
    return info.label if info.unit in ("", info.label) else f"{info.label} ({info.unit})"


def verdict(judgement: Judgement, arm: str) -> str:
    """A sentence on one arm: the verdict in the words of the judgement, then its evidence."""
    findings = judgement.deciding
    comparison, digits = findings.comparisons[arm], findings.info.digits
    said = comparison.verdict or NOTHING
    bounded = judgement.rule.bound is not None
    evidence = []
    if bounded:
        mean = number(findings.of_arm(arm).summary.mean, digits)
        evidence.append(f"mean {mean}, bound {number(judgement.rule.bound, digits)}")
    elif comparison.mean is not None:
        evidence.append(f"difference {number(comparison.mean, digits, signed=True)}")
    if comparison.interval is not None:
        shown = interval(comparison.interval, digits, signed=not bounded)
        evidence.append(f"{percent(judgement.confidence_of_each)} interval {shown}")
    if comparison.detectable is not None:
        evidence.append(f"smallest detectable difference {number(comparison.detectable, digits)}")
    pairs = len(comparison.differences)
    evidence.append(f"{pairs or 'no'} pair{'' if pairs == 1 else 's'} of runs")
    return f"{arm}: {said}. {_capital('; '.join(evidence))}."


def noise(judgement: Judgement) -> str:
    """What the seeds do to the deciding figure, and what that leaves to be seen."""
    findings = judgement.deciding
    digits, floor = findings.info.digits, findings.noise
    if floor.between_seeds is None:
        return "Noise is not known: no arm has two finished seeds."
    said = (
        f"Noise: between seeds the {findings.info.label} varies by a standard deviation of "
        f"{number(floor.between_seeds, digits)}"
    )
    if floor.paired is not None:
        said += (
            f", its difference to the baseline's within a seed by {number(floor.paired, digits)}"
        )
    if floor.detectable is not None:
        said += (
            f"; a true difference of {number(floor.detectable, digits)} would be seen with a "
            f"chance of {percent(judgement.rule.power)}"
        )
    return f"{said}."


def rule(judgement: Judgement) -> str:
    """The rule that decides, in words."""
    asked, info = judgement.rule, judgement.deciding.info
    count = len(judgement.deciding.comparisons)
    if asked.bound is not None:
        what = f"the {label(info)} of an arm has to stay below {number(asked.bound, info.digits)}"
    else:
        what = f"the {label(info)} decides, {asked.better} is better"
    if asked.margin > 0:
        what += f", differences surely within {asked.margin:g} count for nothing"
    intervals = f"{percent(judgement.confidence_of_each)} interval"
    together = f", so that all {count} hold together with {percent(asked.confidence)}"
    return (
        f"Rule: {what}. Runs of one seed are compared pair by pair with the baseline; "
        f"each has a {intervals}{together if count > 1 else ''}."
    )


def listed(values: Iterable[object]) -> str:
    """Different values in order, the first few of many."""
    known = list(dict.fromkeys(str(value) for value in values if value not in (None, "")))
    more = len(known) - MOST_LISTED
    shown = "; ".join(known[:MOST_LISTED])
    return (f"{shown}; and {more} more" if more > 0 else shown) or NOTHING


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
